"""Optimizers of other packages: what they keep of a parameter follows its merges, and unknown memory is made anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import p4torch as p4
from p4torch.merging import optimizer_state as memory

zoo = pytest.importorskip("pytorch_optimizer")
schedulefree = pytest.importorskip("schedulefree")

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "schedule-free AdamW": lambda p: schedulefree.AdamWScheduleFree(p, lr=1e-2),
    "schedule-free SGD": lambda p: schedulefree.SGDScheduleFree(p, lr=1e-2),
    "schedule-free wrapper": lambda p: schedulefree.ScheduleFreeWrapper(torch.optim.SGD(p, lr=0.1), momentum=0.9),
    "another schedule-free": lambda p: zoo.ScheduleFreeAdamW(p, lr=1e-2),
    "Prodigy": lambda p: zoo.Prodigy(p),
    "Lookahead": lambda p: zoo.Lookahead(torch.optim.Adam(p, lr=1e-2), k=3),
    "SOAP": lambda p: zoo.SOAP(p, lr=1e-2),
    "Kron": lambda p: zoo.Kron(p, lr=1e-2),
    "Shampoo": lambda p: zoo.Shampoo(p, lr=1e-2),
    "Lion": lambda p: zoo.Lion(p, lr=1e-3),
    "Adan": lambda p: zoo.Adan(p, lr=1e-2),
    "Muon": lambda p: torch.optim.Muon([{"params": group["params"]} for group in p], lr=1e-2),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}
#: Names of what is a value of the parameter.
ITERATES = ("z", "p0", "slow_params")
WIDTH, EVERY = 6, 5


def model_of(**options: Any) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh(), nn.Linear(WIDTH, WIDTH, bias=False))
    for layer in (model[0], model[2]):
        nn.init.orthogonal_(layer.weight)
        p4.perturb(layer, "weight", p4.Orthogonal, **options)
    return model


def train(model: nn.Module, optimizer: Any, schedule: p4.MergeScheduler, steps: int) -> float:
    if hasattr(optimizer, "train"):
        optimizer.train()
    for index in range(steps):
        x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(index))
        optimizer.zero_grad()
        loss = (model(x) - x.flip(-1).tanh()).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", [{"rank": 2}, {"block": 3}], ids=str)
def test_values_that_optimizers_keep_follow_a_merge(name: str, options: dict[str, int]) -> None:
    if name == "Muon" and "block" in options:
        pytest.skip("Muon takes matrices only")
    torch.manual_seed(0)
    model = model_of(**options)
    groups = [group for group in p4.parameter_groups(model) if group["params"]]
    optimizer = OPTIMIZERS[name](groups)
    schedule = p4.MergeScheduler(model, optimizer, every=EVERY)
    first = train(model, optimizer, schedule, EVERY)
    for site in schedule.sites:
        for _, value in site.perturbation.own_parameters():
            for each in memory.unwrapped(optimizer):
                for key, entry in each.state.get(value, {}).items():
                    if key in ITERATES:
                        torch.testing.assert_close(entry, value.detach(), rtol=0, atol=0)
    assert train(model, optimizer, schedule, 6 * EVERY) < first
    assert schedule.merged == 14 and schedule.skipped == 0


def test_what_goes_on_after_the_step_is_not_attached_to() -> None:
    model = model_of(rank=2)
    optimizer = OPTIMIZERS["schedule-free wrapper"](p4.parameter_groups(model)[1:])
    with pytest.raises(p4.OptimizerError, match=r"got ScheduleFreeWrapper: call `step\(\)` instead"):
        p4.MergeScheduler(model, optimizer).attach()


@pytest.mark.parametrize("name", ["schedule-free AdamW", "schedule-free SGD", "schedule-free wrapper"])
def test_a_merge_does_not_move_the_averaged_weight(name: str) -> None:
    """The averaged weights of schedule-free optimizers, which they show in `eval()`, stay where training goes on."""
    model = model_of(rank=2)
    groups = [group for group in p4.parameter_groups(model) if group["params"]]
    optimizer = OPTIMIZERS[name](groups)
    schedule = p4.MergeScheduler(model, optimizer, every=EVERY)
    train(model, optimizer, schedule, EVERY)
    trained = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    optimizer.eval()
    for layer, before in zip((model[0], model[2]), trained, strict=True):
        torch.testing.assert_close(layer.weight.detach(), before)
