"""Merges in a loop that makes its own optimizer."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

import p4torch as p4
from p4torch.errors import ArgumentError, OptimizerError
from p4torch.training import LazyMergeScheduler


def perturbed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(p4.perturb(nn.Linear(4, 4), "weight", p4.Invertible, rank=1), nn.Linear(4, 1))


def merges(model: nn.Module) -> int:
    return max(int(site.perturbation.attempts) for site in p4.sites(model))


def train(model: nn.Module, steps: int = 10) -> torch.optim.Optimizer:
    """A library's, which nobody edits."""
    optimizer = torch.optim.Adam(list(model.parameters()), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    return optimizer


def test_it_merges_as_a_scheduler_that_was_attached_does() -> None:
    model, other = perturbed(), perturbed()
    LazyMergeScheduler(model, every=5, seed=3)
    torch.manual_seed(1)
    train(model)
    optimizer = torch.optim.Adam(list(other.parameters()), lr=1e-2)
    p4.MergeScheduler(other, optimizer, every=5, seed=3).attach()
    torch.manual_seed(1)
    for _ in range(10):
        optimizer.zero_grad()
        other(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert merges(model) == merges(other) == 2
    for left, right in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_a_second_training_has_a_schedule_of_its_own() -> None:
    model = perturbed()
    lazy = LazyMergeScheduler(model, every=5)
    assert lazy.scheduler is None
    optimizer = train(model, 7)
    first = lazy.scheduler
    assert first is not None and first.merged == 1 and first.optimizer is optimizer
    second = train(model, 7)
    assert lazy.scheduler is not first and lazy.scheduler.optimizer is second  # type: ignore[union-attr]
    assert merges(model) == 2


def test_other_optimizers_are_left_alone() -> None:
    model, bystander = perturbed(), nn.Linear(4, 1)
    lazy = LazyMergeScheduler(model, every=1)
    train(bystander, 3)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)  # type: ignore[index]
    model(torch.randn(8, 4)).mean().backward()
    optimizer.step()
    assert lazy.scheduler is None
    optimizer.add_param_group({"params": list(model[0].parameters())})  # type: ignore[index]
    optimizer.step()
    assert lazy.scheduler is not None and merges(model) == 1


def test_an_optimizer_that_lacks_some_is_refused_at_its_first_step() -> None:
    model = nn.Sequential(perturbed(), perturbed())
    LazyMergeScheduler(model, every=1)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(OptimizerError, match=r"1\.0"):
        optimizer.step()


def test_nothing_is_kept_alive() -> None:
    gc.collect()
    before = len(torch_optimizer._global_optimizer_pre_hooks)
    model = perturbed()
    lazy = LazyMergeScheduler(model, every=2)
    optimizer: Any = train(model, 4)
    gone = [weakref.ref(value) for value in (model, optimizer, lazy.scheduler)]
    del optimizer
    gc.collect()
    assert gone[1]() is None and gone[2]() is None and lazy.scheduler is None
    del model, lazy
    gc.collect()
    assert gone[0]() is None and len(torch_optimizer._global_optimizer_pre_hooks) == before


def test_copies_and_removal() -> None:
    model = perturbed()
    lazy = LazyMergeScheduler(model, every=2)
    twin = copy.deepcopy(model)
    train(twin, 4)
    assert merges(twin) == 0
    lazy.remove()
    lazy.remove()
    train(model, 4)
    assert merges(model) == 0


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: LazyMergeScheduler(nn.Linear(2, 2)), "model"),
        (lambda: LazyMergeScheduler(None), "model"),  # type: ignore[arg-type]
        (lambda: LazyMergeScheduler(perturbed(), every=0), "every"),
    ],
)
def test_what_is_refused(call: Any, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        call()
