"""Rational-quadratic splines: their bins against the reference, their ends, and couplings on line and circle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, strategies as st
from tests.flows.bijections import randomized
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.flows import Spline, SplineCoupling
from p4torch.flows._fused.knots import LEAST_SLOPE, knots, knots_reference
from p4torch.flows._fused.quadratic import quadratic, quadratic_reference
from p4torch.flows.monotone import BOUND, monotone, rational_quadratic, wrapped

#: Two orders of the same few float64 operations, on numbers of up to ten.
ROUNDING = 1e-12
#: There and back in float32, relative to the bound: a bin may be 1/500 as wide as high, or the other way round.
SINGLE = 2e-3
#: Of a point and of its value in float32, each some roundings of the bound; that of the point grows with the slope.
ROUNDINGS = 20 * torch.finfo(torch.float32).eps
#: A continuous function at two points this close to each other, and what it may change by.
CLOSE, SMALL = 1e-9, 1e-6


def drawn(bins: int, *shape: int, size: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return size * torch.randn(3 * bins + 1, *shape, dtype=dtype)


@given(st.integers(2, 9), st.booleans(), st.integers(0, 2**16), st.floats(0.5, 4.0))
def test_bins_are_those_of_the_reference(bins: int, inverse: bool, seed: int, bound: float) -> None:
    torch.manual_seed(seed)
    raw, limit = drawn(bins, 4, 5).requires_grad_(), torch.full((4, 1), bound, dtype=torch.float64)
    u = (2 * torch.rand(4, 5, dtype=torch.float64) - 1) * bound
    got, expected = knots(u, raw, limit, inverse), knots_reference(u, raw, limit, inverse)
    weights = [torch.randn_like(u) for _ in got]
    torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDING)
    gradients = (torch.autograd.grad(values, raw, weights)[0] for values in (got, expected))
    torch.testing.assert_close(*gradients, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("inverse", [False, True])
def test_first_and_second_derivatives(inverse: bool) -> None:
    raw = drawn(3, 6).requires_grad_()
    u = torch.linspace(-2.7, 2.8, 6, dtype=torch.float64).requires_grad_()
    bound = torch.full((6,), 3.0, dtype=torch.float64)

    def both(u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic(u, raw, bound, inverse)

    assert torch.autograd.gradcheck(both, (u, raw))
    assert torch.autograd.gradgradcheck(both, (u, raw))


def test_a_bin_is_that_of_the_reference_with_its_derivatives() -> None:
    raw, bound = drawn(5, 40), torch.full((40,), BOUND, dtype=torch.float64)
    u = (2 * torch.rand(40, dtype=torch.float64) - 1) * BOUND
    inputs = [value.detach().requires_grad_() for value in (u, *knots(u, raw, bound, inverse=False))]
    got, expected = quadratic(*inputs), quadratic_reference(*inputs)
    weights = [torch.randn_like(u) for _ in got]
    torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING)
    gradients = (torch.autograd.grad(values, inputs, weights) for values in (got, expected))
    torch.testing.assert_close(*gradients, rtol=ROUNDING, atol=ROUNDING)


@given(st.integers(2, 9), st.integers(0, 2**16), st.sampled_from([0.5, 4.0]))
def test_splines_on_the_line_as_one_node_are_those_of_the_reference(bins: int, seed: int, spread: float) -> None:
    """With shift and scale; some points lie beyond the bound."""
    torch.manual_seed(seed)
    raw, u = drawn(bins, 3, 20).requires_grad_(), (spread * torch.randn(3, 20, dtype=torch.float64)).requires_grad_()
    line = torch.zeros(3, 1, dtype=torch.bool)
    got, expected = (monotone(u, raw, line, circular) for circular in (False, True))
    weights = [torch.randn_like(u) for _ in got]
    torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING)
    gradients = (torch.autograd.grad(values, (u, raw), weights) for values in (got, expected))
    torch.testing.assert_close(*gradients, rtol=ROUNDING, atol=10 * ROUNDING)


def test_derivatives_of_splines_on_the_line() -> None:
    raw, u = drawn(3, 2, 3).requires_grad_(), torch.randn(2, 3, dtype=torch.float64).requires_grad_()

    def both(u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return monotone(u, raw, torch.zeros(2, 1, dtype=torch.bool), circular=False)

    assert torch.autograd.gradcheck(both, (u, raw))
    assert torch.autograd.gradgradcheck(both, (u, raw))


@pytest.mark.parametrize("circular", [(), (0, 1)])
def test_angles_of_a_checkpoint_are_mapped_as_angles(circular: Sequence[int]) -> None:
    """Also where the module was made with others."""
    saved = randomized(Spline(2, circular=circular), 0.3)
    loaded = Spline(2, circular=() if circular else (0, 1))
    loaded.load_state_dict(saved.state_dict())
    x = 3 * torch.randn(20, 2)
    torch.testing.assert_close(loaded(x), saved(x), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_there_and_back(size: float) -> None:
    raw, bound = drawn(8, 2000, size=size), torch.tensor(BOUND, dtype=torch.float64)
    u = 1.2 * BOUND * (2 * torch.rand(2000, dtype=torch.float64) - 1)
    y, slope = rational_quadratic(u, raw, bound)
    back, opposite = rational_quadratic(y, raw, bound, inverse=True)
    assert y.isfinite().all() and slope.isfinite().all()
    if size == 1.0:
        torch.testing.assert_close(back, u, rtol=0, atol=ROUNDING * 1e3)
        torch.testing.assert_close(opposite, -slope, rtol=0, atol=ROUNDING * 1e3)


def test_single_precision() -> None:
    raw, bound = drawn(8, 5000, dtype=torch.float32), torch.tensor(BOUND)
    u = BOUND * (2 * torch.rand(5000) - 1)
    y, slope = rational_quadratic(u, raw, bound)
    back, _ = rational_quadratic(y, raw, bound, inverse=True)
    exact, exact_slope = rational_quadratic(u.double(), raw.double(), bound.double())
    assert (back - u).abs().max() <= SINGLE * BOUND
    assert ((y - exact).abs() / (1 + exact_slope.exp())).max() <= ROUNDINGS * BOUND
    torch.testing.assert_close(slope.double(), exact_slope, rtol=0, atol=SINGLE)


def test_increasing_and_the_identity_outside() -> None:
    raw, bound = drawn(5, 1).expand(-1, 4001), torch.tensor(2.0, dtype=torch.float64)
    u = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    y, slope = rational_quadratic(u, raw, bound)
    assert (y.diff() > 0).all()
    outside = u.abs() >= 2
    assert torch.equal(y[outside], u[outside]) and not slope[outside].any()


def test_starts_as_the_identity() -> None:
    coupling, x = SplineCoupling(6, (0, 2, 5), circular=(1, 2)).double(), torch.randn(20, 6, dtype=torch.float64)
    z, logabsdet = coupling(x)
    torch.testing.assert_close(z, x, rtol=0, atol=ROUNDING)
    assert logabsdet.abs().max() <= ROUNDING


@pytest.mark.parametrize("feature", [1, 2])
def test_nothing_happens_at_the_cut_of_an_angle(feature: int) -> None:
    """Feature 1 is seen and feature 2 moves: the density is the same on both sides, z up to a full turn."""
    coupling = randomized(SplineCoupling(4, (0, 2), circular=(1, 2)).double(), 0.3)
    x = torch.randn(50, 4, dtype=torch.float64)
    below, above = x.clone(), x.clone()
    below[:, feature], above[:, feature] = math.pi - CLOSE, -math.pi + CLOSE
    (z, density), (other, same) = coupling(below), coupling(above)
    torch.testing.assert_close(density, same, rtol=0, atol=SMALL)
    off = z - other
    off[:, [1, 2]] = torch.remainder(off[:, [1, 2]] + math.pi, 2 * math.pi) - math.pi
    assert off.abs().max() <= SMALL
    assert (z[:, 2] >= -math.pi).all() and (z[:, 2] < math.pi).all()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_a_spline_belong_to_it(inverse: bool, dtype: torch.dtype) -> None:
    """There, the slope is that of the end knots: on the circle, the same from both sides of the cut."""
    raw, bound = drawn(4, 2, dtype=dtype), torch.tensor(math.pi, dtype=dtype)
    raw[-1] = raw[8]  # slopes at both ends
    raw = raw[:, :1].expand(-1, 2)
    ends = torch.tensor([-math.pi, math.pi], dtype=dtype)
    value, slope = rational_quadratic(ends, raw, bound, inverse)
    tolerance = ROUNDINGS * math.pi if dtype == torch.float32 else ROUNDING
    torch.testing.assert_close(value, ends, rtol=0, atol=tolerance)
    torch.testing.assert_close(slope[0], slope[1], rtol=0, atol=tolerance)
    expected = (LEAST_SLOPE + torch.nn.functional.softplus(raw[8, 0])).log() * (-1 if inverse else 1)
    torch.testing.assert_close(slope[0], expected, rtol=0, atol=tolerance)


def around(feature: int, angles: Sequence[float]) -> Tensor:
    """One point but for one angle, `(len(angles), 4)`."""
    x = torch.randn(4, dtype=torch.float64).repeat(len(angles), 1)
    x[:, feature] = torch.tensor(angles, dtype=torch.float64)
    return x


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_the_cut_itself_is_like_its_neighbours(inverse: bool, shifted: bool) -> None:
    """Value, derivative and log-determinant at -π and π are those beside them, with and without a shift."""
    coupling = randomized(SplineCoupling(4, (0, 2), circular=(1, 2)).double(), 0.1)
    if not shifted:
        with torch.no_grad():
            coupling.last.weight[-2:], coupling.last.bias[-2:] = 0, 0
    x = around(2, [-math.pi, math.pi, -math.pi + CLOSE, math.pi - CLOSE]).requires_grad_()
    z, logabsdet = (coupling.inverse if inverse else coupling)(x)
    slope = torch.autograd.grad(z[:, 2].sum(), x)[0][:, 2]
    for values in (slope, logabsdet, z[:, 2].cos(), z[:, 2].sin()):
        torch.testing.assert_close(values, values[:1].expand(4), rtol=0, atol=SMALL)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("feature", [1, 2])
def test_an_angle_is_the_same_after_whole_turns(inverse: bool, feature: int) -> None:
    coupling = randomized(SplineCoupling(4, (0, 2), circular=(1, 2)).double(), 0.3)
    x = around(feature, [0.7 + 2 * math.pi * turns for turns in (-3, -1, 0, 1, 2)])
    z, logabsdet = (coupling.inverse if inverse else coupling)(x)
    torch.testing.assert_close(logabsdet, logabsdet[:1].expand(5), rtol=0, atol=SMALL)
    torch.testing.assert_close(z[:, [0, 2, 3]], z[:1, [0, 2, 3]].expand(5, 3), rtol=0, atol=SMALL)
    assert (z[:, 2].abs() <= math.pi).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_lie_from_minus_pi_to_below_pi(dtype: torch.dtype) -> None:
    coupling = randomized(SplineCoupling(2, (0,), circular=(0,)).to(dtype), 0.3)
    pi = torch.tensor(math.pi, dtype=dtype)
    ends = torch.stack([-pi, pi, torch.nextafter(-pi, -pi - 1), torch.nextafter(-pi, pi), torch.nextafter(pi, -pi)])
    assert ((wrapped(ends) >= -pi) & (wrapped(ends) < pi)).all()
    angles = torch.cat([ends, 4 * pi * (2 * torch.rand(5000, dtype=dtype) - 1)])
    x = torch.stack([angles, torch.randn(()).expand(len(angles)).to(dtype)], -1)
    for direction in (coupling, coupling.inverse):
        z, _ = direction(x)
        assert ((z[:, 0] >= -pi) & (z[:, 0] < pi)).all()


def test_other_features_stay() -> None:
    coupling, x = randomized(SplineCoupling(5, (3, 1)), 0.3), torch.randn(7, 5)
    z, _ = coupling(x)
    assert torch.equal(z[:, [0, 2, 4]], x[:, [0, 2, 4]]) and (z[:, [1, 3]] != x[:, [1, 3]]).all()


@pytest.mark.parametrize(
    ("moved", "options", "message"),
    [
        ((), {}, "`moved` must be 1 to 3 of 4 features, got \\[\\]"),
        ((0, 1, 2, 3), {}, "`moved` must be 1 to 3 of 4"),
        ((1, 1), {}, "`moved` must be different integers from 0 to 3"),
        ((4,), {}, "`moved` must be different integers from 0 to 3"),
        ((0,), {"circular": (7,)}, "`circular` must be different integers from 0 to 3"),
        ((0,), {"bins": 1}, "`bins` must be an integer >= 2, got 1"),
        ((0,), {"hidden": (0,)}, "`hidden` must be a sequence of integers >= 1"),
    ],
)
def test_bad_options(moved: Sequence[int], options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SplineCoupling(4, moved, **options)  # type: ignore[arg-type]


def test_one_feature_is_too_few() -> None:
    with pytest.raises(ArgumentError, match=r"`features` must be an integer >= 2.*Spline\(1\).*got 1"):
        SplineCoupling(1, (0,))
