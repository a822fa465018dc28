"""Lipschitz networks: the bound holds, layers trade shares of it, and what cannot be certified is refused."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.convolutions import true_norm
from torch import Tensor, nn

import p4torch as p4
from p4torch.networks.constants import lipschitz_constant

#: A norm in float64 by SVD against its certified bound.
ROUNDING = 1e-9


def network(bound: float = 1.0, widths: tuple[int, ...] = (3, 16, 16, 1), **options: Any) -> p4.LipschitzNetwork:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", p4.ProjectionWarning)
        return p4.LipschitzNetwork(nn.Sequential(*layers[:-1]), bound, **options)


def move(model: nn.Module, size: float) -> None:
    """Put B at random."""
    with torch.no_grad():
        for site in p4.sites(model):
            for _, value in site.perturbation.own_parameters():
                value.copy_(size * torch.randn_like(value))


def norms(model: p4.LipschitzNetwork) -> Tensor:
    return torch.stack([torch.linalg.matrix_norm(site.base.detach().double(), ord=2) for site in model.sites()])


def train(model: p4.LipschitzNetwork, steps: int, every: int = 10) -> p4.MergeScheduler:
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=every)
    for _ in range(steps):
        x = torch.randn(64, 3)
        loss = (model(x) - 5 * torch.sin(2 * x.sum(-1, keepdim=True))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return scheduler


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 2, "scale": 1.0},
        {"at": "merge", "rank": 2, "scale": 1.0},
        {"at": "merge", "rank": 2, "scale": 1.0, "method": "scale"},
    ],
)
@pytest.mark.parametrize("bound", [0.5, 4.0])
def test_the_bound_holds_and_is_used(bound: float, options: dict[str, Any]) -> None:
    model = network(bound, **options)
    start = norms(model)
    scheduler = train(model, 300)
    assert scheduler.skipped == 0
    got = norms(model)
    assert got.prod() <= bound * (1 + ROUNDING)
    assert got.prod() > 0.9 * bound  # the target is steeper: all of it is used
    assert model.lipschitz_bound() <= bound * (1 + 1e-6)  # rounding of float32 weights is counted in
    assert model.defect() == 0
    shares, before = got.log() - got.log().mean(), start.log() - start.log().mean()
    assert options.get("at") != "merge" or (shares - before).abs().max() > 0.05  # layers trade
    x, y = torch.randn(2, 1000, 3)
    assert ((model(x) - model(y)).norm(dim=-1) <= bound * (x - y).norm(dim=-1) * (1 + 1e-5)).all()


def test_a_slack_budget_leaves_merges_alone() -> None:
    model, x = network(1e6), torch.randn(9, 3)
    move(model, 0.1)
    before = model(x)
    assert all(report.ok for report in p4.merge(model))
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)  # float32 sums of 16 products
    assert norms(model).prod() < 1e6


def test_between_merges_it_says_what_it_is() -> None:
    model = network(1.0, at="merge", rank=1)
    move(model, 0.3)
    effective = [torch.linalg.matrix_norm(site.module.weight.detach().double(), ord=2) for site in model.sites()]
    assert model.lipschitz_bound() >= torch.stack(effective).prod()
    assert model.lipschitz_bound() > 1.0
    p4.merge(model)
    assert model.lipschitz_bound() <= 1.0 + 1e-6


def test_a_steep_start_is_scaled_down_with_its_distance() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    with torch.no_grad():
        model[0].weight.copy_(2 * torch.eye(4))
        model[2].weight.copy_(8 * torch.eye(4))
    with pytest.warns(p4.ProjectionWarning, match=r"constant of 16, above `bound` = 1: .* multiplied by 0.25"):
        made = p4.LipschitzNetwork(model, 1.0)
    torch.testing.assert_close(norms(made), torch.tensor([0.5, 2.0]).double(), rtol=1e-5, atol=0)
    assert made.defect() == 0


def test_a_start_within_the_bound_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    before = [layer.weight.detach().clone() for layer in model[::2]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = p4.LipschitzNetwork(model, 100.0)
    assert all(torch.equal(site.base, weight) for site, weight in zip(made.sites(), before, strict=True))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(), nn.LeakyReLU(0.2), nn.LeakyReLU(-3.0), nn.ELU(2.0), nn.CELU(0.5), nn.SELU(), nn.GELU(),
        nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(3.0), nn.Softsign(),
        nn.LogSigmoid(), nn.Hardtanh(), nn.Hardswish(), nn.Hardsigmoid(), nn.Softshrink(), nn.Tanhshrink(), nn.ReLU6(),
    ],
)  # fmt: skip
def test_constants_of_activations(layer: nn.Module) -> None:
    """No slope is above the constant, and some slope is close to it."""
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    known = lipschitz_constant(layer)
    assert known is not None
    assert slope.abs().max() <= known * (1 + ROUNDING)
    assert slope.abs().max() >= 0.99 * known


def test_constants_count() -> None:
    model = p4.LipschitzNetwork(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2)), 0.3)
    assert model.constant == 0.25
    assert model.lipschitz_bound() <= 0.3 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("model", "bound", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), 0.0, "`bound` must be a positive number, got 0.0"),
        (nn.Sequential(nn.Linear(2, 2)), -1.0, "`bound` must be a positive number, got -1.0"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 1.0, "got 1: BatchNorm1d"),
        (nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))), 1.0, r"got 0.1: Dropout"),
        (nn.Sequential(nn.ReLU()), 1.0, "at least one nn.Linear"),
        (nn.Sequential(nn.ConvTranspose2d(2, 2, 3)), 1.0, "got 0: ConvTranspose2d"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, stride=2, padding_mode="circular")), 1.0, "got 0: `size` must be given"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), 1.0, "got 0: Conv2d"),
        (nn.TransformerEncoderLayer(4, 2), 1.0, "got itself: TransformerEncoderLayer"),
    ],
)
def test_what_cannot_be_certified(model: nn.Module, bound: float, message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.LipschitzNetwork(model, bound)


@pytest.mark.parametrize("options", [{}, {"input_shape": (1, 8, 8)}, {"at": "merge"}])
def test_convolutions(options: dict[str, Any]) -> None:
    """Of groups, strides and both paddings; their norms are those of the maps of images."""
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", p4.ProjectionWarning)
        model = p4.LipschitzNetwork(layers, 1.0, **options)
    assert model.constant == 1
    move(model, 1.0)
    assert all(report.ok for report in p4.merge(model))
    certified = [site.perturbation.certificate.norm for site in model.sites()]  # type: ignore[union-attr]
    assert model.lipschitz_bound() <= 1.0 + 1e-6
    plain = p4.finalize(model)
    jacobian = torch.func.jacrev(lambda image: plain(image.unsqueeze(0)).squeeze(0))
    jacobians = torch.stack([jacobian(image).flatten(1) for image in torch.randn(20, 1, 8, 8)])
    assert torch.linalg.matrix_norm(jacobians, ord=2).max() <= 1.0
    true = [true_norm(layer, layer.in_channels, (8, 8)) for layer in plain.double() if isinstance(layer, nn.Conv2d)]
    true.append(float(torch.linalg.matrix_norm(plain[-1].weight, ord=2)))
    for known, norm in zip(certified, true, strict=True):
        assert norm <= float(known) * (1 + 1e-6)  # rounding of float32 weights
        assert float(known) <= (1.05 if options.get("input_shape") else 1.15) * norm  # on 8 x 8 pixels


def test_input_shapes() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular", stride=2), nn.Flatten())
    with pytest.raises(p4.ArgumentError, match="`input_shape` must be the shape of an input of the model"):
        p4.LipschitzNetwork(layers, 100.0, input_shape=(2, 8, 8))
    with pytest.raises(p4.ArgumentError, match=r"`model` .* 0: `size` must be multiples"):
        p4.LipschitzNetwork(layers, 100.0, input_shape=(1, 9, 9))
    with pytest.raises(p4.ArgumentError, match=r"`options` must be those of SpectralBound .* got rnak"):
        p4.LipschitzNetwork(layers, 100.0, input_shape=(1, 8, 8), rnak=2)
    model = p4.LipschitzNetwork(layers, 100.0, input_shape=(1, 8, 8))
    torch.testing.assert_close(float(model.lipschitz_bound()), true_norm(p4.finalize(model).double(), 1, (8, 8)))


def test_one_layer_twice() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(p4.ArgumentError, match="one layer twice: 2"):
        p4.LipschitzNetwork(nn.Sequential(layer, nn.ReLU(), layer), 1.0)


def test_finalized_it_is_a_plain_network() -> None:
    model, x = network(), torch.randn(5, 3)
    train(model, 30)
    before = model(x)
    plain = p4.finalize(model)
    assert type(plain) is nn.Sequential and type(plain[0]) is nn.Linear
    torch.testing.assert_close(plain(x), before, rtol=0, atol=1e-6)
