"""Latent distributions: those of vectors of the right size, and what samples carry along."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributions, nn

from p4torch.errors import ArgumentError
from p4torch.flows import (
    AffineCoupling,
    BentIdentity,
    Bijection,
    Chain,
    Flow,
    Inverse,
    InvertibleLinear,
    InvertibleMLP,
    NormalAndUniform,
    Partial,
    SplineCoupling,
    StandardNormal,
    Swap,
    VolumePreserving,
)

ZEROS, ONES = torch.zeros(2), torch.ones(2)
#: float64 rounding through two layers.
ROUNDING = 1e-10

#: Of two features each, and able to say so.
KNOWN: dict[str, Callable[[], Bijection]] = {
    "swap": lambda: Swap(2),
    "coupling": lambda: AffineCoupling(2),
    "spline": lambda: SplineCoupling(2, (0,)),
    "linear": lambda: InvertibleLinear(2),
    "mlp": lambda: InvertibleMLP(2, depth=2),
    "partial": lambda: Partial(2, (0,), InvertibleLinear(1)),
    "inverse": lambda: Inverse(InvertibleLinear(2)),
    "chain": lambda: Chain([InvertibleLinear(2), Chain([BentIdentity()])]),
    "volume": lambda: VolumePreserving(Chain([InvertibleLinear(2)])),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize(
    ("base", "message"),
    [
        (StandardNormal(3), "of 2 features, as the bijection, got StandardNormal of 3"),
        (NormalAndUniform(1, ()), "of 2 features, as the bijection, got NormalAndUniform of 1"),
        (distributions.Normal(ZEROS, ONES), r"event shape \(2,\) .*got Normal .*Independent\(base, 1\) makes one"),
        (distributions.Normal(0.0, 1.0), r"event shape \(2,\) .*with event shape \(\) and batch shape \(\)$"),
        (distributions.Independent(distributions.Normal(torch.zeros(3), 1.0), 1), r"got Independent with .*\(3,\)"),
        (distributions.MultivariateNormal(torch.zeros(5, 2), torch.eye(2)), r"and batch shape \(5,\)$"),
        (distributions.Independent(distributions.Normal(torch.zeros(2, 2), 1.0), 2), r"with event shape \(2, 2\)"),
    ],
)
def test_of_another_shape(name: str, base: distributions.Distribution, message: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^`base` must be .*{message}"):
        Flow(KNOWN[name](), base)


def test_of_no_vectors_where_the_bijection_does_not_tell() -> None:
    with pytest.raises(ArgumentError, match=r"`base` must be .*event shape \(n,\) .*Independent"):
        Flow(BentIdentity(), distributions.Normal(ZEROS, ONES))


class Elementwise(nn.Module):
    """A latent distribution of a user's own, wrong: one density a feature."""

    def log_prob(self, z: Tensor) -> Tensor:
        return -z.square()

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(2, generator=generator)


def test_of_ones_own_at_first_use() -> None:
    flow = Flow(BentIdentity(), Elementwise())
    with pytest.raises(ArgumentError, match=r"`base` must be .*log_prob\(z\) is of shape \(5,\) .*got \(5, 2\)"):
        flow.log_prob(torch.zeros(5, 2))
    with pytest.raises(ArgumentError, match=r"`base` must be .*sample\(3\) is of shape \(3, n\), got \(2,\)"):
        flow.sample(3)


def test_points_of_another_size_than_torchs_distribution() -> None:
    flow = Flow(BentIdentity(), distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)))
    assert flow.log_prob(torch.zeros(4, 5, 3)).shape == (4, 5)
    with pytest.raises(ArgumentError, match=r"`x` must be of shape \(..., 3\), got \(5, 2\)"):
        flow.log_prob(torch.zeros(5, 2))


@pytest.mark.parametrize("name", KNOWN)
def test_samples_have_no_graph_unless_asked_for(name: str) -> None:
    normal = distributions.Independent(distributions.Normal(ZEROS, ONES), 1)
    for base in (StandardNormal(2), normal):
        flow = Flow(KNOWN[name](), base)
        trained = any(value.requires_grad for value in flow.parameters())
        x = flow.sample(3)
        assert x.grad_fn is None and not x.requires_grad and x.shape == (3, 2)
        for differentiable in (flow.rsample(3), *flow.sample_with_log_prob(3)):
            assert differentiable.requires_grad is trained
        with torch.no_grad():
            assert not flow.rsample(3).requires_grad


def test_samples_are_the_same_with_and_without_a_graph() -> None:
    layers = [AffineCoupling(2, hidden=(4,)), InvertibleLinear(2)]
    flow = Flow(Chain(layers), StandardNormal(2)).double()
    one, other, third = (
        draw(20, torch.Generator().manual_seed(0))
        for draw in (flow.sample, flow.rsample, lambda *given: flow.sample_with_log_prob(*given)[0])
    )
    torch.testing.assert_close(one, other, rtol=0, atol=ROUNDING)
    assert torch.equal(other, third)


def test_a_latent_distribution_that_trains() -> None:
    """Its parameters get the gradient along the samples, too: E[x²] with x = m + ε has the derivative 2m."""
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    base = distributions.Independent(distributions.Normal(mean, torch.ones(2, dtype=torch.float64)), 1)
    flow = Flow(BentIdentity(), base)
    z = flow.bijection(flow.rsample(7))[0]
    (gradient,) = torch.autograd.grad(z.square().sum(), mean)
    torch.testing.assert_close(gradient, 2 * z.sum(0), rtol=0, atol=ROUNDING)
    assert not flow.sample(7).requires_grad


def test_a_mixture_has_no_rsample() -> None:
    parts = distributions.Independent(distributions.Normal(torch.randn(3, 2), torch.ones(3, 2)), 1)
    mixture = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(3)), parts)
    flow = Flow(InvertibleLinear(2), mixture)
    assert flow.rsample(4).requires_grad and flow.log_prob(flow.sample(4)).shape == (4,)
