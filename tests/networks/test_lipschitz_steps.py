"""Lipschitz networks at every step: many kinds of networks, steps of many sizes; pooling and residual branches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.convolutions import supremum
from torch import nn

import p4torch as p4
from p4torch.networks.constants import lipschitz_constant

#: A norm in float64 by SVD, or a sum of products, against a certified bound.
ROUNDING = 1e-9

pytestmark = pytest.mark.filterwarnings("ignore:.*each of its:p4torch.ProjectionWarning")

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), (4,)),
    "tanh": (lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), (4,)),
    "pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(4, 3),
        ),
        (1, 8, 8),
    ),
    "residual": (
        lambda: nn.Sequential(
            nn.Linear(4, 8), p4.Residual(nn.Sequential(nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), 0.5),
            p4.Residual(nn.Sequential(nn.Linear(8, 8), p4.Residual(nn.Linear(8, 8), 0.1))), nn.Linear(8, 2),
        ),
        (4,),
    ),
}  # fmt: skip


def exact(model: p4.LipschitzNetwork) -> float:
    """The constant by SVD in float64, of what the network computes with."""
    weights = [site.module.weight.detach().double() for site in model.sites()]  # type: ignore[operator]
    norms = [
        supremum(weight, 32) if weight.dim() > 2 else torch.linalg.matrix_norm(weight, ord=2) for weight in weights
    ]
    return float(model.chain.value(norms))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("rate", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("options", [{}, {"rank": 2}])
def test_the_bound_holds_at_every_step(kind: str, rate: float, options: dict[str, Any]) -> None:
    make, shape = NETWORKS[kind]
    model = p4.LipschitzNetwork(make(), 1.5, **options)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=rate)
    scheduler = p4.MergeScheduler(model, optimizer, every=7)
    scheduler.attach()
    x = torch.randn(16, *shape)
    reached = 0.0
    for step in range(30):
        loss = (model(x) * torch.randn(16, model(x).shape[-1])).sum() - model(x).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert exact(model) <= model.lipschitz_bound() <= 1.5, step
        reached = max(reached, exact(model))
    assert scheduler.skipped == 0 and scheduler.merged > 0
    assert rate < 0.1 or reached > 1.4  # the bound was what held it
    jacobian = torch.func.vmap(torch.func.jacrev(lambda point: model(point.unsqueeze(0)).squeeze(0)))(x)
    assert torch.linalg.matrix_norm(jacobian.flatten(2).double(), ord=2).max() <= 1.5


@pytest.mark.parametrize("kind", NETWORKS)
def test_merges_leave_the_network_to_the_bit(kind: str) -> None:
    make, shape = NETWORKS[kind]
    model, x = p4.LipschitzNetwork(make(), 1.5), torch.randn(16, *shape)
    for _ in range(3):
        with torch.no_grad():
            for site in model.sites():
                for _, value in site.perturbation.own_parameters():
                    value.add_(torch.randn_like(value))
        before = model(x)
        assert all(report.ok for report in p4.merge(model))
        assert torch.equal(model(x), before) and model.defect() == 0
    plain = p4.finalize(model)
    torch.testing.assert_close(plain(x), before, rtol=0, atol=1e-6)  # sums of a few float32 in another order


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pooled", "residual"])
def test_it_compiles_without_a_break(kind: str) -> None:
    torch.compiler.reset()
    make, shape = NETWORKS[kind]
    model, x = p4.LipschitzNetwork(make().double(), 0.8), torch.randn(5, *shape, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=ROUNDING)
    compiled(x).sum().backward()


def test_the_case_of_a_critic_arrives() -> None:
    """Two normal distributions 3 apart: after 500 steps of all defaults the critic tells most of it."""
    torch.manual_seed(0)
    model = p4.LipschitzNetwork(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1)), bound=1.0)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-3)
    p4.MergeScheduler(model, optimizer).attach()
    for _ in range(500):
        x, y = torch.randn(2, 256, 32)
        optimizer.zero_grad()
        (model(x).mean() - model(y + 3 / 32**0.5).mean()).backward()
        optimizer.step()
    x = torch.randn(20_000, 32)
    distance = float((model(x + 3 / 32**0.5) - model(x)).mean().detach())
    assert 0.97 * 3 <= distance <= 3 * (1 + 1e-6)


# --- residual branches ----------------------------------------------------------------------------------------------


def test_a_residual_layer_adds() -> None:
    branch = nn.Linear(3, 3)
    x = torch.randn(5, 3)
    torch.testing.assert_close(p4.Residual(branch, 0.5)(x), 0.5 * x + branch(x))
    model = p4.LipschitzNetwork(nn.Sequential(nn.Linear(3, 3), p4.Residual(branch, 0.5)), 100.0)
    first, second = (torch.linalg.matrix_norm(site.base.double(), ord=2) for site in model.sites())
    assert float(model.lipschitz_bound()) == pytest.approx(float(first * (0.5 + second)), rel=1e-4)


def test_a_steep_residual_network_is_scaled_down() -> None:
    start = nn.Sequential(p4.Residual(nn.Linear(3, 3)), p4.Residual(nn.Linear(3, 3)))
    with torch.no_grad():
        start[0].branch.weight.copy_(torch.eye(3))  # type: ignore[operator,union-attr]
        start[1].branch.weight.copy_(torch.eye(3))  # type: ignore[operator,union-attr]
    with pytest.warns(p4.ProjectionWarning, match=r"constant of 4, above `bound` = 2.25: .* multiplied by 0.5"):
        model = p4.LipschitzNetwork(start, 2.25)
    assert model.defect() == 0 and exact(model) == pytest.approx(2.25, rel=1e-5)


def test_a_branch_that_starts_at_zero_learns() -> None:
    branch = nn.Linear(4, 4)
    nn.init.zeros_(branch.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = p4.LipschitzNetwork(nn.Sequential(p4.Residual(branch)), 1.5)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    p4.MergeScheduler(model, optimizer, every=10).attach()
    for _ in range(100):
        x = torch.randn(32, 4)
        optimizer.zero_grad()
        (model(x) - 3 * x).square().mean().backward()
        optimizer.step()
    assert exact(model) > 1.45


def test_skips_above_the_bound_are_refused() -> None:
    with pytest.raises(p4.ArgumentError, match=r"`bound` must be above 2, the constant of the skips alone, got 1\.5"):
        p4.LipschitzNetwork(p4.Residual(nn.Linear(3, 3), 2.0), 1.5)
    with pytest.raises(p4.ArgumentError, match=r"got 0\.branch\.1: BatchNorm1d"):
        p4.LipschitzNetwork(nn.Sequential(p4.Residual(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))), 5.0)
    with pytest.raises(p4.ArgumentError, match="`alpha` must be a number >= 0, got -1"):
        p4.Residual(nn.Linear(3, 3), -1.0)
    with pytest.raises(p4.ArgumentError, match=r"`branch` must be .* keeps the shape \(2, 3\), got \(2, 1\)"):
        p4.Residual(nn.Linear(3, 1))(torch.randn(2, 3))


# --- pooling --------------------------------------------------------------------------------------------------------


POOLS = [
    nn.AvgPool1d(2), nn.AvgPool1d(3, 1), nn.AvgPool1d(3, 2, padding=1), nn.AvgPool1d(3, 2, ceil_mode=True),
    nn.AvgPool1d(3, 1, padding=1, count_include_pad=False), nn.MaxPool1d(2), nn.MaxPool1d(3, 1),
    nn.MaxPool1d(2, 1, dilation=2), nn.AdaptiveAvgPool1d(1), nn.AdaptiveMaxPool1d(1), nn.ZeroPad1d(2),
]  # fmt: skip
PLANES = [
    nn.AvgPool2d(2), nn.AvgPool2d(2, 1), nn.AvgPool2d((2, 3), (1, 2), divisor_override=2), nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, padding=1), nn.AdaptiveAvgPool2d((1, 1)), nn.ZeroPad2d(1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "shape"), [(each, (2, 9)) for each in POOLS] + [(each, (2, 6, 6)) for each in PLANES]
)
def test_constants_of_pooling(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(50, *shape, dtype=torch.float64)
    x[0] = torch.zeros(shape)
    x[0, ..., shape[-1] // 2] = 1  # one entry wins all windows that see it
    known = lipschitz_constant(layer)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda point: layer(point.unsqueeze(0)).squeeze(0)))(x)
    matrices = jacobian.reshape(50, -1, x[0].numel())
    assert known is not None and torch.linalg.matrix_norm(matrices, ord=2).max() <= known * (1 + ROUNDING)


@pytest.mark.parametrize("layer", [nn.AvgPool1d(2), nn.MaxPool1d(2), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AvgPool3d(2)])
def test_windows_apart_are_exact(layer: nn.Module) -> None:
    dimensions = int(type(layer).__name__[-2])
    expected = 1.0 if "Max" in type(layer).__name__ else 0.5 ** (dimensions / 2)
    assert lipschitz_constant(layer) == pytest.approx(expected)


@pytest.mark.parametrize("layer", [nn.MaxPool1d(2, return_indices=True), nn.AdaptiveAvgPool2d(2), nn.LPPool1d(2, 2)])
def test_pooling_of_unknown_constants(layer: nn.Module) -> None:
    assert lipschitz_constant(layer) is None
