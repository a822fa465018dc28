"""Conditional flows that have trained and merged: densities integrate to one, and samples have them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import p4torch as p4
from p4torch.flows import AffineCoupling, Bijection, Chain, Flow, InvertibleLinear, SplineCoupling, StandardNormal, Swap

#: float32 rounding of a handful of layers: what conditional densities promise.
SINGLE = 1e-5

#: Of a Riemann sum over smooth densities, of float64: its own error at bends of the splines, and in the tails.
GRID = 1e-3

STEPS, EVERY, CONTEXTS = 60, 10, 5


def of_one_feature() -> Chain:
    return Chain(
        [
            InvertibleLinear(1, context=2, context_rank=1),
            SplineCoupling(1, (0,), hidden=(16,), context=2),
            AffineCoupling(1, (16,), context=2),
        ]
    )


def of_two_features() -> Chain:
    layers: list[Bijection] = []
    for _ in range(2):
        layers += [
            InvertibleLinear(2, rank=1, context=2, context_rank=1),
            SplineCoupling(2, (0,), hidden=(16,), context=2),
            AffineCoupling(2, (16,), context=2),
            Swap(2),
        ]
    return Chain(layers)


def data(features: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points that two contexts shift and stretch: two lumps, whose distance is |c|."""
    context = torch.randn(256, 2, generator=generator)
    side = 2 * torch.randint(2, (256, 1), generator=generator) - 1
    noise = torch.randn(256, features, generator=generator)
    return side * context.norm(dim=-1, keepdim=True) + 0.5 * noise * context[:, :1].exp().clamp_max(2), context


def trained(features: int) -> Flow:
    torch.manual_seed(0)
    flow = Flow(of_one_feature() if features == 1 else of_two_features(), StandardNormal(features))
    optimizer = torch.optim.Adam(p4.parameter_groups(flow), lr=5e-3)
    schedule = p4.MergeScheduler(flow, optimizer, every=EVERY)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (-flow.log_prob(*data(features, generator)).mean()).backward()
        optimizer.step()
        schedule.step()
    assert schedule.merged > 0
    return flow


@pytest.fixture(scope="module", params=[1, 2])
def flow(request: pytest.FixtureRequest) -> Flow:
    return trained(request.param)


def test_training_learns_from_the_context(flow: Flow) -> None:
    x, context = data(flow.base.features, torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert flow.log_prob(x, context).mean() > flow.log_prob(x, context.roll(1, 0)).mean() + 0.1


def test_densities_integrate_to_one(flow: Flow) -> None:
    features, exact = flow.base.features, copy.deepcopy(flow).double()
    axis = torch.linspace(-16, 16, 401 if features == 2 else 100_001, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * features).reshape(-1, features)
    contexts = torch.randn(CONTEXTS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        masses = [exact.log_prob(grid, context).exp().sum() * (axis[1] - axis[0]) ** features for context in contexts]
    torch.testing.assert_close(torch.stack(masses), torch.ones(CONTEXTS, dtype=torch.float64), rtol=0, atol=GRID)


@pytest.mark.parametrize("grad", [False, True])
def test_samples_have_the_density_that_they_were_drawn_with(flow: Flow, grad: bool) -> None:
    contexts = torch.randn(CONTEXTS, 1, 2, generator=torch.Generator().manual_seed(3))
    with torch.set_grad_enabled(grad):
        x, log_prob = flow.sample_with_log_prob(200, contexts, torch.Generator().manual_seed(4))
        again = flow.log_prob(x, contexts)
        z, _ = flow.bijection(x, contexts)
        back = flow.bijection.inverse(z, contexts)[0]
    scale = 1 + again.detach().abs()
    assert float(((again - log_prob).detach().abs() / scale).max()) <= SINGLE
    assert float(((back - x).detach().abs() / (1 + x.detach().abs())).max()) <= SINGLE
