"""Bijections from a support onto the line: edges in single precision, densities outside, errors that say what to do."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.flows import (
    AffineCoupling,
    Bijection,
    Chain,
    Dequantize,
    Flow,
    Inverse,
    InverseSoftplus,
    Log,
    Logit,
    NormalAndUniform,
    Partial,
    Spline,
    SplineCoupling,
    StandardNormal,
    wrapped,
)

#: Some roundings of float32, relative to the value, or to 1.
ROUNDINGS = 8 * torch.finfo(torch.float32).eps
#: The same of float64.
EXACT = 1e-12
#: Mean log-likelihood of some thousand points of a known density.
SAMPLING = 0.05

#: Name -> (bijection, from a number on the line to a point of the support).
SUPPORTS: dict[str, tuple[Callable[[], Bijection], Callable[[Tensor], Tensor]]] = {
    "logit": (Logit, lambda z: z.sigmoid()),
    "logit of an interval": (lambda: Logit(-3.0, 5.0), lambda z: 8 * z.sigmoid() - 3),
    "log": (Log, lambda z: z.exp()),
    "inverse softplus": (InverseSoftplus, lambda z: torch.logaddexp(z, torch.zeros_like(z))),
}
#: Far out: sigmoids of it are 0 or 1 in float32.
LINE = st.lists(st.floats(-60.0, 60.0, width=32), min_size=1, max_size=8)


@pytest.mark.parametrize("name", SUPPORTS)
@given(values=LINE)
def test_log_determinants_are_those_of_autograd(name: str, values: list[float]) -> None:
    make, point = SUPPORTS[name]
    x = point(torch.tensor(values, dtype=torch.float64).clamp(-15, 15)).requires_grad_()
    z, logabsdet = make()(x.unsqueeze(-1))
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(logabsdet, slope.log(), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", SUPPORTS)
@given(values=LINE)
def test_single_precision_agrees_with_double(name: str, values: list[float]) -> None:
    """Of points as float32 holds them, close to the edges, too."""
    make, point = SUPPORTS[name]
    x = point(torch.tensor(values)).unsqueeze(-1)
    (z, logabsdet), (exact, exact_logabsdet) = make()(x), make()(x.double())
    inside = exact_logabsdet.isfinite()
    assert torch.equal(inside, logabsdet.isfinite())
    torch.testing.assert_close(z.double(), exact, rtol=ROUNDINGS, atol=ROUNDINGS)
    torch.testing.assert_close(logabsdet.double(), exact_logabsdet, rtol=ROUNDINGS, atol=ROUNDINGS)


@pytest.mark.parametrize("name", SUPPORTS)
@given(values=LINE)
def test_samples_lie_inside_and_have_a_density(name: str, values: list[float]) -> None:
    bijection, z = SUPPORTS[name][0](), torch.tensor(values).unsqueeze(-1)
    x, logabsdet = bijection.inverse(z)
    bijection.check_support(x)
    exact, exact_logabsdet = bijection.inverse(z.double())
    assert bijection(x)[1].isfinite().all()
    torch.testing.assert_close(x.double(), exact, rtol=ROUNDINGS, atol=ROUNDINGS)
    torch.testing.assert_close(logabsdet.double(), exact_logabsdet, rtol=ROUNDINGS, atol=ROUNDINGS)


def test_the_extremes_of_a_dtype_are_inside() -> None:
    z = torch.tensor([[-1e4], [-200.0], [200.0], [1e4]])
    for make, _ in SUPPORTS.values():
        x, _ = make().inverse(z)
        make().check_support(x)
        assert x.isfinite().all()


@pytest.mark.parametrize(
    ("bijection", "outside", "message"),
    [
        (Logit(), [0.5, 1.0], "interval from 0 to 1 .give a wider one.*got 1 for feature 1 .1 such value"),
        (Logit([0.0, -1.0], [1.0, 0.5]), [0.5, 0.7], r"from \[0.0, -1.0\] to \[1.0, 0.5\].*got 0.7 for feature 1"),
        (Log(), [2.0, 0.0], "positive .shift the data.*got 0 for feature 1"),
        (InverseSoftplus(), [2.0, -3.0], "positive .shift the data.*got -3 for feature 1"),
        (Dequantize(), [2.0, 0.5], "whole numbers .round them.*got 0.5 for feature 1"),
        (Spline(2, circular=[1]), [9.0, 40.0], r"angles in \[-π, π\).*got 40 for feature 1"),
        (SplineCoupling(2, [1], circular=[1]), [9.0, 40.0], r"angles in \[-π, π\).*got 40 for feature 1"),
        (SplineCoupling(2, [0], circular=[1]), [9.0, 40.0], r"angles in \[-π, π\).*got 40 for feature 1"),
        (Partial(2, [1], Log()), [1.0, -1.0], r"positive .*got -1 for feature 0 .*among features \[1\]"),
        (Chain([Partial(2, [0], Spline(1)), Log()]), [1.0, -1.0], "positive .*got -1 for feature 1"),
    ],
)
def test_values_outside(bijection: Bijection, outside: list[float], message: str) -> None:
    """`check` raises; `log_prob` gives -∞ with gradients that are numbers, or wraps angles."""
    flow, x = Flow(bijection, StandardNormal(2)), torch.tensor([outside], requires_grad=True)
    with pytest.raises(ArgumentError, match=message):
        flow.check(x)
    with pytest.raises(ArgumentError, match=message):
        flow.fit_scale(x)
    log_prob = flow.log_prob(x)
    if "angles" in message:
        assert log_prob.isfinite().all()
        return
    assert log_prob.item() == -math.inf
    assert torch.autograd.grad(log_prob.sum(), x)[0].isfinite().all()


def test_what_is_not_a_number_spreads() -> None:
    x = torch.tensor([[math.nan]])
    for make, _ in SUPPORTS.values():
        z, logabsdet = make()(x)
        assert z.isnan().all() and logabsdet.isnan().all()
    with pytest.raises(ArgumentError, match="`x` must be finite, got 1 infinities or NaN"):
        Flow(Log(), StandardNormal(1)).check(x)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (1.0, 1.0, "`low` must be below high"),
        (0.0, math.inf, "finite numbers"),
        ([0.0, 1.0], [1.0, 2.0, 3.0], "as many as features, got 2 and 3"),
    ],
)
def test_bad_intervals(low: float, high: float, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Logit(low, high)


def test_densities_integrate_to_one() -> None:
    """Over the support, of an interval, of positive numbers, and over one turn of the circle."""
    torch.manual_seed(0)
    spline = Spline(1, circular=[0]).requires_grad_(False)
    torch.nn.init.normal_(spline.raw)
    for bijection, low, high in ((Logit(-1, 2), -1.0, 2.0), (Log(), 0.0, 200.0), (InverseSoftplus(), 0.0, 200.0)):
        x = torch.linspace(low, high, 200_001, dtype=torch.float64).unsqueeze(-1)
        mass = torch.trapezoid(Flow(bijection, StandardNormal(1)).double().log_prob(x).exp(), x[:, 0])
        assert abs(float(mass) - 1) < ROUNDINGS
    x = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64).unsqueeze(-1)
    flow = Flow(spline, NormalAndUniform(1, [0])).double()
    assert abs(float(torch.trapezoid(flow.log_prob(x).exp(), x[:, 0])) - 1) < ROUNDINGS


def test_an_angle_beyond_a_turn_has_no_density_at_the_base_and_is_wrapped_by_a_flow() -> None:
    base = NormalAndUniform(2, [1])
    assert base.log_prob(torch.tensor([0.0, 40.0])) == -math.inf
    assert base.log_prob(torch.tensor([40.0, math.pi])).isfinite()
    x = torch.tensor([[0.3, 40.0]])
    flow = Flow(Spline(2, circular=[1]), base)
    torch.testing.assert_close(flow.log_prob(x), flow.log_prob(torch.cat([x[:, :1], wrapped(x[:, 1:])], -1)))


def test_dequantised_numbers_come_back_and_log_prob_is_a_lower_bound() -> None:
    """Of numbers 0 and 1 with probabilities 1/4 and 3/4, under a flow that is not their density."""
    torch.manual_seed(0)
    x = torch.arange(-3, 300).unsqueeze(-1)
    z, logabsdet = Dequantize()(x)
    assert z.dtype == torch.float32 and torch.equal(Dequantize().inverse(z)[0], x.float()) and not logabsdet.any()
    assert (z > x).all() and (z < x + 1).all()
    large = torch.tensor([[2.0**22], [2.0**30], [-(2.0**24)]])
    assert torch.equal(Dequantize().inverse(Dequantize()(large)[0])[0], large)
    flow = Flow(Chain([Dequantize(), Logit(0.0, 2.0)]), StandardNormal(1))
    points = torch.linspace(0, 2, 200_001, dtype=torch.float64)[1:-1].unsqueeze(-1)
    density = Flow(Logit(0.0, 2.0), StandardNormal(1)).double().log_prob(points).exp()
    mass = float(torch.trapezoid(density[:100_000], points[:100_000, 0]))
    bound = float(flow.log_prob(torch.zeros(20_000, 1, dtype=torch.long)).mean())
    assert bound < math.log(mass) < bound + 1


@pytest.mark.parametrize("make", [AffineCoupling, lambda n: SplineCoupling(n, [0])])
def test_a_coupling_of_one_feature_says_what_to_use(make: Callable[[int], Bijection]) -> None:
    with pytest.raises(ArgumentError, match=r"p4torch.flows.Spline\(1\)\), got 1"):
        make(1)


def test_a_spline_fits_one_feature() -> None:
    """Two peaks, which a Gaussian is 0.3 nats behind."""
    torch.manual_seed(0)
    x = torch.randn(2_000, 1) * 0.3 + torch.where(torch.rand(2_000, 1) < 0.5, 1.0, -1.0)
    flow = Flow(Spline(1), StandardNormal(1))
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
    peaks = torch.distributions.Normal(torch.tensor([-1.0, 1.0]), 0.3)
    exact = -(peaks.log_prob(x).exp().mean(-1).log().mean())
    assert float(loss.detach() - exact) < SAMPLING


@pytest.mark.parametrize("name", SUPPORTS)
def test_repr_and_inverse_layers(name: str) -> None:
    bijection = SUPPORTS[name][0]()
    x = Inverse(bijection)(torch.zeros(3, 2))[0]
    torch.testing.assert_close(bijection(x)[0], torch.zeros(3, 2), rtol=0, atol=ROUNDINGS)
    assert type(bijection).__name__ in repr(bijection)
