"""A run that is stopped anywhere and resumed is the same run, bit by bit: any optimizer, shape of B, merge options."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import p4torch as p4

schedulefree = pytest.importorskip("schedulefree")

WIDTH, STEPS = 5, 14

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "Adam": partial(torch.optim.Adam, lr=1e-2),
    "AdamW": partial(torch.optim.AdamW, lr=1e-2, amsgrad=True),
    "SGD": partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
    "RMSprop": partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9),
    "Adagrad": partial(torch.optim.Adagrad, lr=1e-2),
    "ASGD": partial(torch.optim.ASGD, lr=1e-2),
    "Rprop": partial(torch.optim.Rprop, lr=1e-3),
    "schedule-free": partial(schedulefree.AdamWScheduleFree, lr=1e-2),
}
PROPERTIES: dict[str, Callable[..., Any]] = {
    "additive": partial(p4.Invertible, rank=2),
    "gradient": partial(p4.Orthogonal, rank=1, directions="gradient"),
    "blocks": partial(p4.Invertible, block=2),
    "rotation": partial(p4.Orthogonal, block=2, side="both"),
    "whole": p4.UnitDeterminant,
    "norm": partial(p4.SpectralBound, bound=1.0),
    "positive": partial(p4.PositiveDefinite, rank=1),
}
OPTIONS = st.fixed_dictionaries(
    {
        "every": st.one_of(st.just(4), st.integers(2, 6)),
        "optimizer_state": st.sampled_from(["reset_directions", "restart", "transport", "keep", "reset"]),
        "correct_every": st.integers(0, 2),
        "refresh_every": st.sampled_from([0, 3]),
        "rewarm": st.integers(0, 1),
        "stagger": st.booleans(),
        "skip_nonfinite": st.booleans(),
        "seed": st.integers(0, 9),
    }
)


def made(property: str, optimizer: str, options: dict[str, Any], attached: bool) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    for layer in (model[0], model[2]):
        nn.init.eye_(layer.weight)
        p4.perturb(layer, "weight", PROPERTIES[property])
    trainer = OPTIMIZERS[optimizer](p4.parameter_groups(model))
    schedule = p4.MergeScheduler(model, trainer, **options)
    if attached:
        schedule.attach()
    if optimizer == "schedule-free":
        trainer.train()
    return model, trainer, schedule


def train(run: tuple[Any, Any, Any], start: int, stop: int) -> list[Tensor]:
    model, optimizer, schedule = run
    losses = []
    for step in range(start, stop):
        x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(step))
        if step == 6:
            x[0] = torch.nan  # a bad batch
        optimizer.zero_grad()
        loss = (model(x) - x.flip(-1)).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.filterwarnings("ignore::p4torch.RecoveryWarning", "ignore::p4torch.StallWarning")
@settings(max_examples=60)
@given(
    property=st.sampled_from(sorted(PROPERTIES)),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    options=OPTIONS,
    attached=st.booleans(),
    stop=st.integers(0, STEPS - 1),
)
def test_a_resumed_run_is_the_same_run(
    property: str, optimizer: str, options: dict[str, Any], attached: bool, stop: int
) -> None:
    whole = made(property, optimizer, options, attached)
    train(whole, 0, stop)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in whole], file)
    losses = train(whole, stop, STEPS)

    file.seek(0)
    resumed = made(property, optimizer, {**options, "seed": 0}, attached)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(copy.deepcopy(state))
    for one, other in zip(losses, train(resumed, stop, STEPS), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    for (name, one), other in zip(whole[0].state_dict().items(), resumed[0].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=name)
    assert str(whole[2].state_dict()) == str(resumed[2].state_dict())
