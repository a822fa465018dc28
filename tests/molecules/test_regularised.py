"""The regularised energy: as it is below the threshold, tame above, finite always."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.regularised import RegularisedEnergy, regularised

#: Rounding of a handful of operations in double precision.
ROUNDING = 1e-12

finite = st.floats(-1e8, 1e8)


@given(finite, finite, st.floats(0.1, 1e3))
def test_it_rises_and_is_the_same_below(one: float, other: float, scale: float) -> None:
    low, high = sorted((one, other))
    energy = torch.tensor([low, high], dtype=torch.float64)
    found = regularised(energy, linear=100.0, scale=scale)
    assert float(found[0]) <= float(found[1])
    assert (found <= energy + ROUNDING * energy.abs()).all()
    assert torch.equal(found[energy <= 100], energy[energy <= 100])


@pytest.mark.parametrize("scale", [0.5, 1.0, 30.0])
def test_it_is_smooth_at_the_threshold(scale: float) -> None:
    energy = torch.tensor([100 - 1e-9, 100.0, 100 + 1e-9], dtype=torch.float64, requires_grad=True)
    found = regularised(energy, linear=100.0, scale=scale)
    (slope,) = torch.autograd.grad(found.sum(), energy)
    torch.testing.assert_close(found, energy)
    torch.testing.assert_close(slope, torch.ones(3, dtype=torch.float64), atol=1e-8, rtol=0)
    above = torch.tensor([250.0], dtype=torch.float64)
    assert float(regularised(above, 100.0, scale)) == pytest.approx(100 + scale * math.log1p(150 / scale))


def test_what_is_not_finite_becomes_a_constant() -> None:
    def energy(x: Tensor) -> Tensor:
        return 1 / x.square().sum((-2, -1)) - 5

    x = torch.randn(4, 3, 3, dtype=torch.float64)
    x[1], x[2, 0, 0] = 0.0, torch.nan
    x.requires_grad_()
    module = RegularisedEnergy(energy, linear=50.0, largest=1e6)
    found = module(x)
    found.sum().backward()
    assert found.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert float(found[1]) == float(found[2]) == float(regularised(torch.tensor(1e6, dtype=torch.float64), 50.0))
    assert not x.grad[[1, 2]].any() and x.grad[[0, 3]].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear": math.inf}, "`linear` must be finite"),
        ({"linear": 1.0, "scale": 0.0}, "`scale` must be positive"),
        ({"linear": 1.0, "largest": 1.0}, "`largest` must be above linear"),
    ],
)
def test_bad_thresholds_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RegularisedEnergy(lambda x: x.sum(), **options)
