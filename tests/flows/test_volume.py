"""Flows that preserve volume as a whole, made of layers that stretch."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.flows.bijections import randomized
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
    linear = [InvertibleLinear(features, rank=2, scale=1.0, init="orthogonal", bias=bias) for _ in range(3)]
    return VolumePreserving(Chain([linear[0], Shift(), linear[1], Shift(), linear[2]]))


def test_it_is_a_bijection() -> None:
    check_bijection(lambda: VolumePreserving(Chain([BentIdentity(), InvertibleLinear(3)])), 3, compile=False)


def test_volume_is_kept_whatever_b_is() -> None:
    model, x = flow().double(), torch.randn(6, 4, dtype=torch.float64)
    randomized(model, 0.2)
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
        randomized(model, 0.2)
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


@pytest.mark.parametrize("features", [4, 258])  # 258: merges that write in place
def test_one_singular_layer_leaves_everything_bit_by_bit(features: int) -> None:
    model = flow(features).double() if features == 4 else flow(features)
    with torch.no_grad():
        model.total()  # inverses follow the change of dtype
        for site in model.sites():
            site.perturbation.u.copy_(0.002 * torch.randn_like(site.perturbation.u))
        middle = model.sites()[1]
        u, v = middle.perturbation.u, middle.perturbation.v[:, :1]
        u.zero_()
        u[:, :1] = -(middle.base @ v) / v.square().sum()  # det R_B(A) = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reports = p4.merge(model, force=True)
    assert [report.merged for report in reports] == [0, 0, 0]
    assert "bijections.2.weight: " in (reports[0].reason or "") and "singular" in (reports[1].reason or "")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) or name.endswith((".attempts", ".skips")), name


def test_layers_of_any_property_and_form() -> None:
    """Exponential layers, a stack of layers, rotations, shears and blocks share one factor."""
    chain = Chain(
        [
            InvertibleLinear(4, property=p4.Orthogonal),
            InvertibleMLP(4, 3),
            InvertibleLinear(4, property=p4.UnitDeterminant),
            InvertibleLinear(4, rank=1, form="exponential"),
            InvertibleLinear(4, block=2),
        ]
    )
    model, x = VolumePreserving(chain).double(), torch.randn(6, 4, dtype=torch.float64)
    for _ in range(3):
        randomized(model, 0.1)
        before = model(x)[0]
        reports = p4.merge(model, force=True)
        assert [(report.merged, report.skipped) for report in reports] == [(1, 0), (3, 0), (1, 0), (1, 0), (1, 0)]
        torch.testing.assert_close(model(x)[0], before, rtol=0, atol=EXACT * 100)
        assert model.total().abs() <= EXACT


def test_a_resume_is_exact() -> None:
    def training() -> tuple[nn.Module, torch.optim.Optimizer, p4.MergeScheduler]:
        torch.manual_seed(0)
        model = flow().double()
        optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
        return model, optimizer, p4.MergeScheduler(model, optimizer, every=4, rewarm=2)

    def walk(parts: tuple[nn.Module, torch.optim.Optimizer, p4.MergeScheduler], start: int, stop: int) -> None:
        for step in range(start, stop):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            parts[1].zero_grad()
            parts[0](3 * x)[0].square().mean().backward()
            parts[1].step()
            parts[2].step()

    straight, resumed = training(), training()
    walk(straight, 0, 9)
    for part, other in zip(resumed, straight, strict=True):
        part.load_state_dict(copy.deepcopy(other.state_dict()))
    walk(straight, 9, 21)
    walk(resumed, 9, 21)
    assert straight[2].merged == resumed[2].merged == 15
    for name, value in straight[0].state_dict().items():
        assert torch.equal(resumed[0].state_dict()[name], value), name


def test_a_copy_has_a_last_layer_of_its_own() -> None:
    model = flow().double()
    randomized(model, 0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reference = copy.deepcopy(model)
    assert reference.last is not model.last
    p4.merge(reference, force=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


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
    randomized(model, 0.2)
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


def test_a_last_layer_that_cannot_stretch() -> None:
    with pytest.raises(p4.ArgumentError, match="of the property Invertible, got one of Orthogonal"):
        VolumePreserving(Chain([InvertibleLinear(2), InvertibleLinear(2, property=p4.Orthogonal)]))
    with pytest.raises(p4.ArgumentError, match="got one of Unperturbed"):
        VolumePreserving(p4.finalize(Chain([InvertibleLinear(2)])))  # type: ignore[arg-type]
