"""Entries that are 0 at the start of what multiplies: they never train, and that is said unless it is asked for."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import p4torch as p4
from p4torch.testing._cases import Factory

#: Mean square error of a mixture of two permutations, against 0.24 near the identity: its zeros come nearer by shares.
LEARNT = 1e-3

doubly = partial(p4.Stochastic, doubly=True)


def said_of(factory: Factory, base: Tensor, **options: Any) -> list[str]:
    layer = nn.Linear(*base.shape[::-1], bias=False)
    layer.weight = nn.Parameter(base.clone())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        p4.perturb(nn.Sequential(layer), "0.weight", factory, **options)
    return [str(warning.message) for warning in caught if warning.category is p4.PropertyWarning]


@pytest.mark.parametrize("factory", [p4.Stochastic, doubly])
@pytest.mark.parametrize("base", [torch.eye(4), torch.eye(4)[[2, 0, 1, 3]]])
def test_a_permutation_matrix_is_said_not_to_train(factory: Factory, base: Tensor) -> None:
    (text,) = said_of(factory, base)
    assert text.startswith("`0.weight`: 12 of 16 entries are 0") and "4 of 4 rows have a single" in text
    assert "`floor`, such as 1e-2" in text
    assert not said_of(factory, base, floor=1e-2)
    assert not said_of(factory, base, floor=0)  # meant


def test_other_zeros() -> None:
    absorbing = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])
    (text,) = said_of(p4.Stochastic, absorbing)
    assert "3 of 9 entries are 0" in text and "1 of 3 rows have a single positive entry" in text
    (text,) = said_of(p4.Nonnegative, torch.eye(3))
    assert "6 of 9 entries are 0" in text and "rows" not in text
    assert not said_of(p4.Nonnegative, torch.eye(3), floor=1e-3)
    assert not said_of(p4.Nonnegative, torch.eye(3), floor=0.0)


@pytest.mark.parametrize("factory", [p4.Stochastic, doubly, p4.Nonnegative])
def test_nothing_is_said_of_positive_ones(factory: Factory) -> None:
    assert not said_of(factory, torch.full((4, 4), 0.25))


def test_the_only_column_is_no_matter_of_training() -> None:
    assert not said_of(p4.Stochastic, torch.ones(4, 1))


@pytest.mark.parametrize("factory", [p4.Stochastic, doubly])
def test_from_the_identity_with_a_floor_to_a_mixture_of_permutations(factory: Factory) -> None:
    target = 0.3 * torch.eye(4) + 0.7 * torch.eye(4).roll(1, 0)
    layer = nn.Linear(4, 4, bias=False)
    layer.weight = nn.Parameter(torch.eye(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", p4.PropertyWarning)
        warnings.simplefilter("ignore", p4.ProjectionWarning)
        p4.perturb(layer, "weight", factory, floor=1e-2)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=3e-2)
    p4.MergeScheduler(layer, optimizer, every=20).attach()
    losses = []
    for _ in range(600):
        loss = (layer.weight - target).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 0.1 and losses[-1] <= LEARNT
