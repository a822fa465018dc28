"""The options that low-rank perturbations share: what is none of them is refused by all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import p4torch as p4

BASE = torch.eye(4)
LOW_RANK: dict[str, Callable[..., nn.Module]] = {
    "update": lambda **options: p4.LowRankUpdate(BASE, **options),
    "stochastic": lambda **options: p4.Stochastic(BASE, floor=0.1, **options),
    "bound": lambda **options: p4.SpectralBound(BASE, rank=1, **options),
    "symmetric": lambda **options: p4.LinearSubspace(BASE, "symmetric", **options),
    "lower": lambda **options: p4.LinearSubspace(BASE, "lower", **options),
    "group": lambda **options: p4.LinearSubspace(BASE, group=torch.eye(4).unsqueeze(0), **options),
}


@pytest.mark.parametrize("option", ["side", "unknown"])
@pytest.mark.parametrize("name", LOW_RANK)
def test_other_options_are_refused(name: str, option: str) -> None:
    given: dict[str, Any] = {option: "left"}
    with pytest.raises(TypeError, match=option):
        LOW_RANK[name](**given)


@pytest.mark.parametrize("name", LOW_RANK)
def test_the_shared_options_reach_the_factors(name: str) -> None:
    perturbation = LOW_RANK[name](scale=0.5, directions="gradient", train_directions=False)
    assert perturbation.scale == 0.5
    assert perturbation.gradient_directions
    assert not perturbation.v.requires_grad
