"""Bijections of some features; the latent distribution of lines and circles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions

from p4torch import sites
from p4torch.errors import ArgumentError
from p4torch.flows import Flow, InvertibleLinear, NormalAndUniform, Partial, StandardNormal, Swap


def _mixing() -> InvertibleLinear:
    return InvertibleLinear(3, init=torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 3.0]]))


def test_chosen_features_are_mapped_in_their_order_and_the_others_pass() -> None:
    layer, chosen = _mixing(), [4, 0, 2]
    x = torch.randn(7, 5)
    z, logabsdet = Partial(5, chosen, layer)(x)
    expected, logabsdet_chosen = layer(x[:, chosen])
    assert torch.equal(z[:, chosen], expected) and torch.equal(z[:, [1, 3]], x[:, [1, 3]])
    assert torch.equal(logabsdet, logabsdet_chosen) and logabsdet.shape == ()


def test_its_perturbation_is_found_and_trains() -> None:
    flow = Flow(Partial(5, range(3), _mixing()), StandardNormal(5))
    assert [site.name for site in sites(flow)] == ["bijection.bijection.weight"]
    (-flow(torch.randn(16, 5)).mean()).backward()
    assert any(value.grad is not None and bool(value.grad.any()) for value in flow.parameters())


@pytest.mark.parametrize("chosen", [(), (0, 0), (0, 5), (-1, 2)])
def test_features_that_do_not_exist_or_repeat_are_refused(chosen: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="`chosen` must be different integers from 0 to 4"):
        Partial(5, chosen, Swap(2))


def test_a_bijection_of_another_number_of_features_is_refused() -> None:
    with pytest.raises(ArgumentError):
        Partial(5, (0, 1), _mixing())(torch.zeros(2, 5))


# --- normal on lines, uniform on circles ------------------------------------------------------------------------------


@pytest.mark.parametrize("circular", [(), (1,), (3, 0), (0, 1, 2, 3)])
def test_the_latent_density_is_exact(circular: tuple[int, ...]) -> None:
    base = NormalAndUniform(4, circular).double()
    z = base.sample(100, torch.Generator().manual_seed(0))
    line = [index for index in range(4) if index not in circular]
    normal = distributions.Normal(torch.tensor(0.0).double(), 1.0).log_prob(z[:, line]).sum(-1)
    uniform = distributions.Uniform(torch.tensor(-math.pi).double(), math.pi).log_prob(z[:, list(circular)]).sum(-1)
    torch.testing.assert_close(base.log_prob(z), normal + uniform)
    assert base.log_prob(z.reshape(4, 25, 4)).shape == (4, 25)


def test_the_latent_density_integrates_to_one() -> None:
    base = NormalAndUniform(2, (1,)).double()
    line = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    circle = (torch.arange(50, dtype=torch.float64) + 0.5) / 50 * 2 * math.pi - math.pi
    mass = base.log_prob(torch.cartesian_prod(line, circle)).exp().sum() * (18 / 2000) * (2 * math.pi / 50)
    assert float(mass) == pytest.approx(1.0, abs=1e-12)  # the trapezoidal rule is exact to rounding here


def test_latent_samples_are_in_range_and_reproducible() -> None:
    base, count = NormalAndUniform(3, (2,)), 20_000
    z = base.sample(count, torch.Generator().manual_seed(5))
    assert torch.equal(z, base.sample(count, torch.Generator().manual_seed(5)))
    assert not torch.equal(z, base.sample(count, torch.Generator().manual_seed(6)))
    assert z.dtype == torch.float32 and z.shape == (count, 3)
    assert bool((z[:, 2] >= -math.pi).all()) and bool((z[:, 2] < math.pi).all())
    means, spreads = z.mean(0), z.std(0)
    exact = torch.tensor([1.0, 1.0, math.pi / math.sqrt(3)])
    error = 4.5 * exact / math.sqrt(count)  # 4.5 standard errors of a mean
    assert bool((means.abs() < error).all()) and bool(((spreads - exact).abs() < error).all())
    assert base.double().sample(2).dtype == torch.float64


def test_its_angles_are_the_state_of_a_latent_density() -> None:
    one, other, z = NormalAndUniform(3, (2,)), NormalAndUniform(3, (0, 1)), torch.randn(5, 3)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.log_prob(z), one.log_prob(z))


@pytest.mark.parametrize("circular", [(3,), (0, 0), (-1,)])
def test_angles_that_do_not_exist_or_repeat_are_refused(circular: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="`circular` must be different integers from 0 to 2"):
        NormalAndUniform(3, circular)
