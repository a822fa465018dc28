"""The regularised energy: monotone, smooth, finite, and deaf to broken frames."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from tests.molecules.systems import shaken, system_of
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.force_field import ForceField
from p4torch.molecules.regularised import RegularisedEnergy, regularised

LINEAR, SCALE, LARGEST = 100.0, 5.0, 1e10
#: Half a step of the numbers near LINEAR, which is where two energies may come out the wrong way round.
ROUNDING = 1e-12

energies = st.floats(-1e30, 1e30)


def value(energy: float, **options: float) -> float:
    return float(regularised(torch.tensor(energy, dtype=torch.float64), **{"linear": LINEAR, **options}))


@given(energies, energies, st.sampled_from([0.1, 1.0, 50.0]), st.sampled_from([math.inf, LARGEST]))
def test_monotone(one: float, other: float, scale: float, largest: float) -> None:
    low, high = sorted((one, other))
    assert value(low, scale=scale, largest=largest) <= value(high, scale=scale, largest=largest) + ROUNDING


@given(st.floats(-1e30, LINEAR))
def test_identity_up_to_the_threshold(energy: float) -> None:
    assert value(energy, scale=SCALE) == energy


@given(st.floats(LINEAR, 1e9))
def test_logarithm_above(energy: float) -> None:
    expected = LINEAR + SCALE * math.log(1 + (energy - LINEAR) / SCALE)
    assert value(energy, scale=SCALE) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_once_continuously_differentiable(scale: float) -> None:
    distance = 1e-9
    energy = torch.tensor([LINEAR - distance, LINEAR, LINEAR + distance], dtype=torch.float64, requires_grad=True)
    result = regularised(energy, LINEAR, scale)
    (slope,) = torch.autograd.grad(result.sum(), energy)
    torch.testing.assert_close(result, energy, rtol=0, atol=2 * distance**2 / scale + ROUNDING)
    torch.testing.assert_close(slope, torch.ones(3, dtype=torch.float64), rtol=0, atol=2 * distance / scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("scale", "largest"), [(0.1, math.inf), (1.0, math.inf), (1.0, LARGEST)])
def test_non_finite_energies(dtype: torch.dtype, broken: float, scale: float, largest: float) -> None:
    top = torch.finfo(dtype).max
    energy = torch.tensor([1.0, broken, top, 1e3], dtype=dtype, requires_grad=True)
    result = regularised(energy, LINEAR, scale, largest)
    (slope,) = torch.autograd.grad(result.sum(), energy)
    assert result.isfinite().all() and slope.isfinite().all()
    assert result[1] == result[2] == result.max() and slope[1] == 0 and slope[0] == 1
    assert (slope[2] == 0) == (largest < top) or slope[2] < 1e-30


def test_a_broken_frame_leaves_the_others_alone() -> None:
    """Coinciding atoms, a NaN among the positions: their gradient is 0, that of the others as without them."""
    system = system_of()
    energy = RegularisedEnergy(ForceField(system.openmm_system), linear=100.0)
    good = shaken(system, 2, 0.01)
    x = torch.cat([good, good])
    x[2, 5], x[3, 3, 0] = x[2, 12], math.nan
    x.requires_grad_()
    result = energy(x)
    (gradient,) = torch.autograd.grad(result.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    alone = good.clone().requires_grad_()
    expected = energy(alone)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), alone, create_graph=True)
    (expected_second,) = torch.autograd.grad(expected_gradient.square().sum(), alone)
    assert result.isfinite().all() and not gradient[2:].any()
    torch.testing.assert_close((result[:2], gradient[:2]), (expected, expected_gradient))
    torch.testing.assert_close(second[:2], expected_second)


def test_any_callable() -> None:
    def reciprocal(x: Tensor) -> Tensor:
        return (1 / x).sum(-1)

    x = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[1e-30, 1.0], [0.5, 0.5]]], requires_grad=True)
    energy = RegularisedEnergy(reciprocal, linear=10.0, largest=1e6)
    energy(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    torch.testing.assert_close(x.grad[0, 0], torch.tensor([-1.0, -0.25]))
    assert not x.grad[0, 1].any() and not x.grad[1, 0].any()
    assert not energy.energy(x.detach()).requires_grad
    assert "linear=10" in repr(energy)


def test_training_through_it_may_differentiate_a_module() -> None:
    """Parameters of the energy are trained, too."""
    energy = RegularisedEnergy(torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)), linear=1.0)
    energy(torch.randn(5, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in energy.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear": math.inf}, "`linear` must be finite, got inf"),
        ({"linear": 1.0, "scale": 0.0}, "`scale` must be positive"),
        ({"linear": 1.0, "largest": 1.0}, "`largest` must be above linear = 1.0, got 1.0"),
        ({"linear": 1.0, "largest": math.nan}, "`largest` must be above"),
    ],
)
def test_refuses(options: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RegularisedEnergy(torch.sum, **options)
