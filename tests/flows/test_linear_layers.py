"""Linear layers of a flow that keep more than invertibility."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import p4torch as p4
from p4torch.flows import Chain, Flow, InvertibleLinear, StandardNormal

#: A few products and solves of small matrices in float64, and in float32.
EXACT, SINGLE = 1e-10, 1e-4

SQUARE: dict[str, dict[str, Any]] = {
    "invertible": {},
    "orthogonal": {"property": p4.Orthogonal, "rank": 2},
    "unit determinant": {"property": p4.UnitDeterminant},
    "circulant": {"property": p4.LinearSubspace, "kind": "circulant"},
    "triangular": {"property": p4.LinearSubspace, "kind": "upper"},
    "symmetric": {"property": p4.LinearSubspace, "kind": "symmetric"},
    "complex": {"property": p4.LowRankUpdate, "rank": 2, "dtype": torch.complex64},
}

VOLUME_PRESERVING = ("orthogonal", "unit determinant")


def points(name: str) -> torch.Tensor:
    return torch.randn(7, 5, dtype=torch.complex64 if name == "complex" else torch.float32)


@pytest.mark.parametrize("name", SQUARE)
def test_a_layer_trains_merges_and_is_given_back(name: str) -> None:
    """Density and round trip stay through merges, and without the perturbation."""
    layer = InvertibleLinear(5, **SQUARE[name])
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=3e-3)
    scheduler = p4.MergeScheduler(layer, optimizer, every=5)
    for _ in range(12):
        z, logabsdet = layer(points(name))
        loss = (z.abs().square().sum(-1) - logabsdet).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert scheduler.merged == 2
    x = points(name)
    expected = layer(x)
    merged = (p4.merge(layer), layer(x))[1]
    p4.finalize(layer)
    assert not list(p4.sites(layer))
    for z, logabsdet in (merged, layer(x)):
        torch.testing.assert_close(z, expected[0], rtol=0, atol=SINGLE)
        torch.testing.assert_close(logabsdet, expected[1], rtol=0, atol=SINGLE)
    again, back = layer.inverse(expected[0])
    torch.testing.assert_close(again, x, rtol=0, atol=SINGLE)
    torch.testing.assert_close(back, -expected[1], rtol=0, atol=SINGLE)
    assert not back.is_complex()


@pytest.mark.parametrize("name", VOLUME_PRESERVING)
def test_volume_is_preserved_exactly(name: str) -> None:
    layer = InvertibleLinear(5, init="orthogonal" if name == "orthogonal" else "identity", **SQUARE[name])
    for value in layer.parameters():
        if value.requires_grad:
            torch.nn.init.normal_(value)
    assert layer(points(name))[1] == layer.inverse(points(name))[1] == 0


def test_a_complex_flow_has_a_density() -> None:
    """A complex normal distribution through z = W x + b, against the one of 2n real numbers."""
    dtype = torch.complex128
    layer = InvertibleLinear(3, init="orthogonal", property=p4.LowRankUpdate, dtype=dtype)
    with torch.no_grad():
        for value in p4.parameter_groups(layer)[1]["params"]:
            value.add_(0.3 * torch.randn(value.shape, dtype=dtype))
    flow = Flow(Chain([layer]), StandardNormal(3, dtype=dtype))
    x, log_p = flow.sample_with_log_prob(4)
    assert x.is_complex() and not log_p.is_complex()
    torch.testing.assert_close(flow.log_prob(x), log_p, rtol=0, atol=EXACT)
    weight = layer.weight.detach()
    real = torch.cat([torch.cat([weight.real, -weight.imag], 1), torch.cat([weight.imag, weight.real], 1)])
    covariance = torch.linalg.inv(2 * real.mT @ real)
    joint = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance)
    torch.testing.assert_close(joint.log_prob(torch.cat([x.real, x.imag], 1)), log_p, rtol=0, atol=EXACT)


def test_complex_and_real_points_are_told_apart() -> None:
    real, complex = InvertibleLinear(3), InvertibleLinear(3, property=p4.LowRankUpdate, dtype=torch.complex64)
    with pytest.raises(p4.ArgumentError, match=r"`x` must be of a floating-point dtype, got torch\.complex64"):
        real(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(p4.ArgumentError, match=r"`z` must be of a complex dtype, got torch\.float32"):
        complex.inverse(torch.zeros(3))
    with pytest.raises(p4.ArgumentError, match="`base` must be real"):
        InvertibleLinear(3, dtype=torch.complex64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_random_rotations_to_start_from(dtype: torch.dtype) -> None:
    weight = InvertibleLinear(4, init="orthogonal", property=p4.LowRankUpdate, dtype=dtype).weight.detach()
    torch.testing.assert_close(weight @ weight.mH, torch.eye(4, dtype=dtype), rtol=0, atol=EXACT)
