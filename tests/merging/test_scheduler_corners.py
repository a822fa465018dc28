"""Corners of the schedule: unusual optimizers, misuse of options and state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.layers import layer_of
from torch import Tensor, nn

import p4torch as p4


def train(layer: nn.Linear, optimizer: torch.optim.Optimizer, schedule: p4.MergeScheduler, steps: int) -> None:
    x = torch.randn(16, layer.in_features)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (layer(x) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        schedule.step()


def test_momentum_in_one_group_only() -> None:
    layer = layer_of()
    optimizer = torch.optim.SGD(p4.parameter_groups(layer, momentum=0.0), lr=1e-2, momentum=0.9)
    schedule = p4.MergeScheduler(layer, optimizer, every=2)
    train(layer, optimizer, schedule, 6)
    assert schedule.merged == 3


def test_lbfgs_has_one_history_for_all() -> None:
    layer = layer_of()
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=0.1)
    with pytest.raises(p4.OptimizerError, match="must be 'keep' for LBFGS"):
        p4.MergeScheduler(layer, optimizer)
    schedule = p4.MergeScheduler(layer, optimizer, every=2, optimizer_state="keep")
    train(layer, optimizer, schedule, 4)
    assert schedule.merged + schedule.skipped == 2


@pytest.mark.parametrize(
    ("model", "optimizer", "options", "message"),
    [
        (None, True, {}, "`model` must be an nn.Module, got NoneType"),
        (True, None, {}, "`optimizer` must be a torch optimizer, got NoneType"),
        (True, True, {"every": 5, "rewarm": 5}, "`rewarm` must be below `every` = 5, got 5"),
    ],
)
def test_arguments_are_named(model: Any, optimizer: Any, options: dict[str, Any], message: str) -> None:
    layer = layer_of()
    steps = torch.optim.SGD(layer.parameters(), lr=0.1) if optimizer else optimizer
    with pytest.raises(p4.ArgumentError, match=message):
        p4.MergeScheduler(layer if model else model, steps, **options)


@pytest.mark.parametrize("state", [None, {}, {"sites": ["weight"]}])
def test_a_state_that_is_none_changes_nothing(state: Any) -> None:
    layer = layer_of()
    schedule = p4.MergeScheduler(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    before = schedule.state_dict()
    with pytest.raises(p4.CheckpointError, match="`state` must be of a MergeScheduler, but lacks"):
        schedule.load_state_dict(state)
    assert str(schedule.state_dict()) == str(before)


def test_another_ranks_bad_batch_counts_here() -> None:
    perturbation = p4.Invertible(torch.eye(3), rank=1)
    report = perturbation.merge(torch.eye(3), all_reduce_min=lambda mask: torch.zeros_like(mask))
    assert report.merged == 0
    assert report.nonfinite == ("u", "v")


def test_recovery_ends_a_warm_up() -> None:
    layer = layer_of()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
    schedule = p4.MergeScheduler(layer, optimizer, every=3, rewarm=2)
    train(layer, optimizer, schedule, 3)
    with torch.no_grad():
        next(p4.sites(layer)).perturbation.get_parameter("u").fill_(torch.nan)
    with pytest.warns(p4.RecoveryWarning):
        train(layer, optimizer, schedule, 3)
    train(layer, optimizer, schedule, 6)
    assert bool(layer.weight.isfinite().all())
