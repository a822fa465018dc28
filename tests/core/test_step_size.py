"""The gains that make a learning rate mean the same at every size, rank and shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import p4torch as p4
from p4torch.core.step_size import STEP, check_scale, low_rank_gain, size_of

#: By how much the norm of one random step may differ from STEP · η · ‖A‖: that of a random matrix is what it is for
#: large sizes, and exponentials and skew parts change it.
FACTOR = 2.0
RATE = 1e-4


def first_step(weight: Tensor, property: type[p4.Perturbation], **options: Any) -> float:
    """‖ΔA‖ / ‖A‖ of a step of Adam at rate 1 with a random gradient."""
    module = nn.Module()
    module.weight = nn.Parameter(weight.clone())
    p4.perturb(module, "weight", property, **options)
    optimizer = torch.optim.Adam(p4.parameter_groups(module)[1:], lr=RATE)
    (module.weight * torch.randn_like(weight)).sum().backward()
    before = module.weight.detach().clone()
    optimizer.step()
    return float(torch.linalg.matrix_norm(module.weight.detach() - before, ord=2) / torch.linalg.norm(before, 2)) / RATE


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize(
    ("property", "options"),
    [
        (p4.Invertible, {}),
        (p4.Invertible, {"block": 16}),
        (p4.Invertible, {"form": "exponential"}),
        (p4.Invertible, {"rank": 1}),
        (p4.Invertible, {"rank": 8}),
        (p4.LowRankUpdate, {"rank": 4, "scale": None}),
    ],
)
@pytest.mark.parametrize("n", [32, 128])
def test_a_rate_moves_a_matrix_by_the_same_share(
    n: int, property: type[p4.Perturbation], options: dict[str, Any], scale: float
) -> None:
    weight = scale * nn.init.orthogonal_(torch.empty(n, n))
    options = options if "rank" not in options else options | {"train_directions": False}
    assert STEP / FACTOR <= first_step(weight, property, **options) <= STEP * FACTOR


def test_the_gain_follows_an_assigned_tensor() -> None:
    layer = p4.perturb(nn.Linear(6, 6), "weight", p4.LowRankUpdate, rank=2, scale=None)
    layer.weight = 5 * torch.eye(6)
    (site,) = p4.sites(layer)
    assert float(site.perturbation.gain) == pytest.approx(5 * low_rank_gain(6, 6, 2))


def test_sizes_of_a_stack() -> None:
    stack = torch.stack([torch.eye(3), 2 * torch.eye(3), torch.zeros(3, 3)])
    torch.testing.assert_close(size_of(stack), torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(("scale", "expected"), [(None, None), (2, 2.0), (np.float32(0.5), 0.5)])
def test_scales(scale: Any, expected: float | None) -> None:
    assert check_scale(scale) == expected and not isinstance(check_scale(scale), np.generic)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, True, "1", np.ones(2)])
def test_what_is_no_scale(scale: Any) -> None:
    with pytest.raises(p4.ArgumentError, match=r"^`scale` must be None or a positive number, got"):
        check_scale(scale)
