"""Flows that preserve volume as a whole, made of layers that stretch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import p4torch as p4
from p4torch.flows import BentIdentity, Bijection, Chain, Inverse, InvertibleLinear, InvertibleMLP, VolumePreserving
from p4torch.testing import check_bijection

#: Sums of a few float64 logarithms; and the same where weights are float32.
EXACT, SINGLE = 1e-12, 1e-5


class Shift(Bijection):
    """(a, b) -> (a, b + tanh(a)): an additive coupling."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, -1)
        return torch.cat([a, b + torch.tanh(a)], -1), x.new_zeros(())

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        a, b = z.chunk(2, -1)
        return torch.cat([a, b - torch.tanh(a)], -1), z.new_zeros(())


def flow(features: int = 4, bias: bool = True) -> VolumePreserving:
    linear = [InvertibleLinear(features, rank=2, init="orthogonal", bias=bias) for _ in range(3)]
    return VolumePreserving(Chain([linear[0], Shift(), linear[1], Shift(), linear[2]]))


def move(model: nn.Module, size: float = 0.2) -> None:
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(size * torch.randn_like(value))


def test_it_is_a_bijection() -> None:
    check_bijection(lambda: VolumePreserving(Chain([BentIdentity(), InvertibleLinear(3)])), 3, compile=False)


def test_volume_is_kept_whatever_b_is() -> None:
    model, x = flow().double(), torch.randn(6, 4, dtype=torch.float64)
    move(model)
    assert model.total().abs() > 1e-2  # the layers do stretch
    z, logabsdet = model(x)
    assert logabsdet.abs().max() <= EXACT
    jacobian = torch.func.vmap(torch.func.jacrev(lambda p: model(p)[0]))(x)
    assert torch.linalg.slogdet(jacobian)[1].abs().max() <= EXACT * 100
    torch.testing.assert_close(model.inverse(z)[0], x, rtol=0, atol=EXACT * 100)


@pytest.mark.parametrize("bias", [True, False])
def test_merges_change_nothing_and_bring_the_sum_to_zero(bias: bool) -> None:
    model, x = flow(bias=bias).double(), torch.randn(6, 4, dtype=torch.float64)
    for _ in range(5):
        move(model)
        before = model(x)[0]
        assert all(report.ok for report in p4.merge(model, force=True))
        torch.testing.assert_close(model(x)[0], before, rtol=0, atol=EXACT * 100)
        assert model.total().abs() <= EXACT
        sums = sum(torch.linalg.slogdet(site.base)[1] for site in model.sites())
        assert abs(float(sums)) <= EXACT * 100
    for site in model.sites():
        product = site.perturbation.inverse(site.base) @ site.base
        torch.testing.assert_close(product, torch.eye(4).double(), rtol=0, atol=EXACT * 100)


def test_large_layers_that_merge_in_place() -> None:
    model, x = flow(features=258), torch.randn(3, 258)
    with torch.no_grad():
        for site in model.sites():
            site.perturbation.u.copy_(0.002 * torch.randn_like(site.perturbation.u))
    before = model(x)[0]
    assert all(report.ok for report in p4.merge(model, force=True))
    torch.testing.assert_close(model(x)[0], before, rtol=0, atol=1e-4)  # float32 sums of 258 products, three times
    assert model.total().abs() <= SINGLE
    for site in model.sites():
        exact = torch.linalg.slogdet(site.base.double())[1]
        torch.testing.assert_close(site.perturbation.logabsdet(site.base).double(), exact, rtol=0, atol=SINGLE)


def test_training_keeps_it() -> None:
    model = flow().double()
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    p4.MergeScheduler(model, optimizer, every=10).attach()
    for _ in range(200):
        x = torch.randn(64, 4, dtype=torch.float64) @ torch.diag(torch.tensor([4.0, 1.0, 0.5, 0.5])).double()
        loss = model(x)[0].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    norms = [float(torch.linalg.slogdet(site.base)[1]) for site in model.sites()]
    assert abs(sum(norms)) <= 1e-9 and model(x)[1].abs().max() <= EXACT * 100


def test_finalized_the_factor_is_in_the_last_layer() -> None:
    model, x = flow().double(), torch.randn(6, 4, dtype=torch.float64)
    move(model)
    before, _ = model(x)
    plain = p4.finalize(model)
    assert type(plain) is Chain
    z, logabsdet = plain(x)
    torch.testing.assert_close(z, before, rtol=0, atol=EXACT * 100)
    assert logabsdet.abs().max() <= EXACT * 100


@pytest.mark.parametrize(
    "model",
    [Chain([InvertibleLinear(2), BentIdentity()]), Chain([]), Chain([InvertibleMLP(2, 3)]), Inverse(BentIdentity())],
)
def test_what_has_no_last_layer(model: Bijection) -> None:
    with pytest.raises(p4.ArgumentError, match="`model` must be a Chain that ends with an InvertibleLinear"):
        VolumePreserving(model)  # type: ignore[arg-type]
