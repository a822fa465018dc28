"""Densities under autocast are those without it: a log-density in bfloat16 is off by tenths."""

from __future__ import annotations

import pytest
import torch
from tests.constructors import PERTURBATIONS
from tests.flows.bijections import BIJECTIONS, randomized
from tests.properties.test_half import element, site_on
from torch import Tensor, nn

from p4torch.flows import Bijection, Chain, Flow, InvertibleLinear, NormalAndUniform, StandardNormal, Swap

#: What a layer before a flow may have lost: nothing of it is the flow's.
SHORT = torch.bfloat16


def flow_of(name: str) -> tuple[Flow, Tensor]:
    make, features = BIJECTIONS[name]
    bijection = randomized(make(), 0.3)
    dtype = torch.complex128 if "complex" in name else None
    flow = Flow(bijection, StandardNormal(features, dtype=dtype))
    return flow, torch.randn(16, features, dtype=dtype)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", BIJECTIONS)
def test_every_bijection_and_its_densities(name: str, grad: bool) -> None:
    flow, x = flow_of(name)
    with torch.set_grad_enabled(grad):
        results = []
        for enabled in (False, True):
            with torch.autocast("cpu", SHORT, enabled=enabled):
                drawn = flow.sample_with_log_prob(4, torch.Generator().manual_seed(0))
                results.append((flow.log_prob(x), *flow.bijection(x), *flow.bijection.inverse(x), *drawn))
    for exact, got in zip(*results, strict=True):
        assert got.dtype == exact.dtype and got.dtype != SHORT
        assert torch.equal(got, exact)


def test_gradients() -> None:
    flow, x = flow_of("chain")
    grads = []
    for enabled in (False, True):
        flow.zero_grad()
        with torch.autocast("cpu", SHORT, enabled=enabled):
            loss = -flow.log_prob(x).mean()
        loss.backward()
        grads.append([value.grad for value in flow.parameters() if value.requires_grad])
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True) if one is not None and two is not None)


def test_compiled() -> None:
    flow, x = flow_of("chain")
    compiled = torch.compile(flow, fullgraph=True, backend="eager")
    with torch.autocast("cpu", SHORT):
        torch.testing.assert_close(compiled(x), flow(x))
        assert compiled(x).dtype == torch.float32


def test_points_that_are_short_already() -> None:
    """As a layer before the flow returns them under autocast."""
    for name in ("linear", "coupling", "bent-identity", "swap", "partial", "spline coupling", "mlp"):
        flow, x = flow_of(name)
        short = x.to(SHORT)
        with torch.autocast("cpu", SHORT):
            got = flow.log_prob(short)
        assert got.dtype == torch.float32 and torch.equal(got, flow.log_prob(short.float())), name


def test_a_flow_in_double_stays_there() -> None:
    flow = Flow(Chain([InvertibleLinear(3), Swap(3)]), StandardNormal(3)).double()
    x = torch.randn(5, 3)
    with torch.autocast("cpu", SHORT):
        assert torch.equal(flow.log_prob(x), flow.log_prob(x.double()))
        assert flow.log_prob(x).dtype == flow.sample(2).dtype == torch.float64


def test_latent_distributions() -> None:
    z = torch.randn(7, 2)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), scale_tril=torch.tensor([[1.0, 0.0], [0.3, 0.7]]))
    for base in (StandardNormal(2), NormalAndUniform(2, [1])):
        with torch.autocast("cpu", SHORT):
            got = base.log_prob(z.to(SHORT))
        assert got.dtype == torch.float32 and torch.equal(got, base.log_prob(z.to(SHORT).float()))
    drawn = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", SHORT, enabled=enabled):
            flow = Flow(Swap(2), normal)
            drawn.append((flow.sample(5), flow.log_prob(z)))
    assert all(torch.equal(one, two) for one, two in zip(*drawn, strict=True))


class Own(Bijection):
    """A user's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.split(1, -1)
        scale = self.layer(a)
        return torch.cat([a, b * scale.exp()], -1), scale.sum(-1)


def test_of_ones_own() -> None:
    flow, x = Flow(Own(), StandardNormal(2)), torch.randn(5, 2)
    with torch.autocast("cpu", SHORT):
        got = flow.log_prob(x)
    assert torch.equal(got, flow.log_prob(x))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_tracked_quantities(name: str) -> None:
    """What flows of one's own ask of a perturbation."""
    row = PERTURBATIONS[name]
    base = element(row)
    if base.dim() < 2 or base.shape[-1] != base.shape[-2]:
        pytest.skip("no determinant")
    site = site_on(row, base.to(torch.complex64 if base.is_complex() else torch.float32))
    randomized(site.module, 0.1)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", SHORT, enabled=enabled), torch.no_grad():
            perturbation = site.perturbation
            results.append([getattr(perturbation, what)(site.base) for what in ("logabsdet", "sign", "inverse")])
    for exact, got in zip(*results, strict=True):
        assert got.dtype == exact.dtype
        torch.testing.assert_close(got, exact)
