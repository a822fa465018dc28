"""Sites that stall or explode are named, once for each kind of trouble, and healthy ones never."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tests.layers import b_of, hand_over
from torch import Tensor, nn
from torch.optim import Optimizer

import p4torch as p4
from p4torch.merging.diagnostics import ATTEMPTS, INTERVALS

WIDTH = 8


def model_of(property: type[p4.Perturbation] = p4.Invertible, width: int = WIDTH, **options: Any) -> nn.Sequential:
    if property is p4.Invertible:  # the paper's
        options = {"rank": 1, "scale": 1.0} | options
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
    for layer in model:
        nn.init.eye_(layer.weight)
        p4.perturb(layer, "weight", property, **options)
    return model


def step(model: nn.Module, optimizer: Optimizer, target: Callable[[Tensor], Tensor] = lambda x: x.flip(-1)) -> Tensor:
    x = torch.randn(32, next(p4.sites(model)).base.shape[-1])
    optimizer.zero_grad()
    loss = (model(x) - target(x)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def stalls(seen: list[warnings.WarningMessage]) -> list[str]:
    return [str(entry.message) for entry in seen if issubclass(entry.category, p4.StallWarning)]


@pytest.fixture
def seen() -> Any:
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        yield recorded


def refuse(model: nn.Module, optimizer: Optimizer, scheduler: p4.MergeScheduler, attempts: int) -> None:
    """Steps that the narrow bounds of the first layer refuse."""
    for _ in range(attempts):
        step(model, optimizer)
        with torch.no_grad():
            b_of(model).u.fill_(0.5)
        scheduler.step()


#: Bounds that refuse every merge.
TIGHT = p4.DeterminantBounds(change=(-1e-6, 1e-6), force_every=0)


@pytest.fixture
def bounded() -> tuple[nn.Module, Optimizer, p4.MergeScheduler]:
    return bounded_parts()


def bounded_parts() -> tuple[nn.Module, Optimizer, p4.MergeScheduler]:
    model = model_of()
    b_of(model).bounds = TIGHT
    optimizer = torch.optim.SGD(p4.parameter_groups(model), lr=1e-3)
    return model, optimizer, p4.MergeScheduler(model, optimizer, every=1)


Parts = tuple[nn.Module, Optimizer, p4.MergeScheduler]


def test_refused_merges_are_told_once_with_the_reason_and_the_way_out(bounded: Parts, seen: list[Any]) -> None:
    refuse(*bounded, ATTEMPTS - 1)
    assert stalls(seen) == []
    refuse(*bounded, 3 * ATTEMPTS)
    (message,) = stalls(seen)
    assert message.startswith("`0.weight`: 100% of its last 8 merges were refused (log|det R_B(A) / det A| is outside")
    assert "bounds=None" in message and "stalls" in message


def test_half_of_the_merges_is_no_stall(seen: list[Any], bounded: Parts) -> None:
    model, _, scheduler = bounded
    for attempt in range(4 * ATTEMPTS):
        b_of(model).bounds = p4.DeterminantBounds() if attempt % 2 else TIGHT
        refuse(*bounded, 1)
    assert scheduler.skipped >= 2 * ATTEMPTS
    assert stalls(seen) == []


def test_one_matrix_of_a_stack_that_is_never_merged_is_named(seen: list[Any]) -> None:
    holder = nn.Module()
    holder.register_parameter("weight", nn.Parameter(torch.eye(3).repeat(20, 1, 1)))
    p4.perturb(holder, "weight", p4.Invertible, rank=1, scale=1.0)
    optimizer = torch.optim.SGD(p4.parameter_groups(holder), lr=1e-2)
    scheduler = p4.MergeScheduler(holder, optimizer, every=1)
    for _ in range(2 * ATTEMPTS):
        optimizer.zero_grad()
        holder.weight.square().sum().backward()
        optimizer.step()
        with torch.no_grad():  # singular
            b_of(holder).v[0] = torch.eye(3)[:, :1]
            b_of(holder).u[0] = -torch.eye(3)[:, :1]
        scheduler.step()
    assert scheduler.merged == 19 * 2 * ATTEMPTS
    (message,) = stalls(seen)
    assert message.startswith(
        "`weight`: merges of 1 of its 20 matrices were refused 8 times in a row (R_B(A) is singular"
    )


def test_warnings_point_at_the_training_loop(seen: list[Any], bounded: Parts) -> None:
    refuse(*bounded, ATTEMPTS)
    assert [entry.filename for entry in seen if entry.category is p4.StallWarning] == [__file__]


def test_counting_goes_on_after_a_resume(bounded: Parts, seen: list[Any]) -> None:
    refuse(*bounded, ATTEMPTS - 1)
    resumed = bounded_parts()
    hand_over(bounded, resumed)
    refuse(*resumed, 1)
    assert len(stalls(seen)) == 1
    again = bounded_parts()
    hand_over(resumed, again)
    refuse(*again, 3 * ATTEMPTS)
    assert len(stalls(seen)) == 1  # told already


@pytest.mark.parametrize("clear", [True, False])
def test_a_weight_without_a_gradient_is_named(seen: list[Any], clear: bool) -> None:
    model = model_of()
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=2)
    for _ in range(4 * INTERVALS):
        x = torch.randn(32, WIDTH)
        optimizer.zero_grad()
        (model[1](model[0](x).detach()) - x.flip(-1)).square().mean().backward()
        optimizer.step()
        if clear:  # what healthy sites look like in some loops
            optimizer.zero_grad()
        scheduler.step()
    (message,) = stalls(seen)
    assert message.startswith("`0.weight`: its perturbation had no gradient") and "does not train" in message


def test_a_gradient_of_zero_is_none(seen: list[Any]) -> None:
    model = model_of()
    optimizer = torch.optim.SGD(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=1)
    for _ in range(2 * INTERVALS):
        optimizer.zero_grad()
        (0 * model(torch.randn(4, WIDTH))).sum().backward()
        optimizer.step()
        scheduler.step()
    assert [message[:10] for message in stalls(seen)] == ["`0.weight`", "`1.weight`"]


def test_a_thawed_site_that_the_optimizer_does_not_hold_is_named(seen: list[Any]) -> None:
    model = model_of()
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=1)
    for index in range(4 * INTERVALS):
        if index == INTERVALS:
            model.requires_grad_(True)
        step(model, optimizer)
        scheduler.step()
    (message,) = stalls(seen)
    assert message.startswith("`0.weight`: the optimizer does not hold 0.weight.u, 0.weight.v")
    assert "add_param_group" in message


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_steps_that_explode_are_named(seen: list[Any], rate: float) -> None:
    """Shears multiply: what a step leads too far, the next ones lead further."""
    model = model_of(p4.UnitDeterminant, width=64, rank=8, scale=1.0)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=rate)
    p4.MergeScheduler(model, optimizer, every=20).attach()
    losses = [step(model, optimizer) for _ in range(100)]
    assert max(losses) > 1e4 * losses[0]
    messages = [message for message in stalls(seen) if "norm of its matrix" in message]
    assert {message[:10] for message in messages} == {"`0.weight`", "`1.weight`"}
    assert all("learning rate" in message for message in messages)


def test_a_first_interval_that_leads_too_far_is_named(seen: list[Any]) -> None:
    model = model_of(partial(p4.LowRankUpdate, scale=1.0), width=64)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1.0)
    p4.MergeScheduler(model, optimizer, every=20).attach()
    for _ in range(20):
        step(model, optimizer)
    assert [
        message for message in stalls(seen) if message.startswith("`0.weight`: the norm of its matrix went from 8 to")
    ]


def test_a_slow_explosion_is_named_too(seen: list[Any]) -> None:
    """A factor of three an interval."""
    model = model_of(partial(p4.LowRankUpdate, scale=1.0))
    optimizer = torch.optim.SGD(p4.parameter_groups(model), lr=1e-3)
    scheduler = p4.MergeScheduler(model, optimizer, every=1)
    for _ in range(6):
        step(model, optimizer)
        (site, _) = p4.sites(model)
        with torch.no_grad():
            v = b_of(model).v
            b_of(model).u.copy_(2 * site.base.norm() * v / v.square().sum())
        scheduler.step()
    (message,) = stalls(seen)
    assert "norm of its matrix" in message and "it began with 2.83" in message


@pytest.mark.parametrize(
    ("property", "start"),
    [
        (p4.LowRankUpdate, "zero"),
        *itertools.product([p4.LowRankUpdate, p4.Orthogonal, p4.Invertible, p4.UnitDeterminant], ["default", "eye"]),
    ],
)
def test_healthy_training_is_silent(seen: list[Any], property: Any, start: str) -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    if start != "default":
        nn.init.zeros_(layer.weight) if start == "zero" else nn.init.eye_(layer.weight)
    elif property is p4.UnitDeterminant and torch.linalg.det(layer.weight) < 0:
        with torch.no_grad():
            layer.weight[0].neg_()
    p4.perturb(layer, "weight", property, rank=2)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    p4.MergeScheduler(layer, optimizer, every=10).attach()
    for _ in range(300):
        step(layer, optimizer, lambda x: 2 * x.roll(1, -1))
    assert stalls(seen) == []
