"""Gradient directions: the sketch against a dense gradient, and what a schedule makes of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import p4torch as p4
from p4torch import linalg
from p4torch.core.low_rank import LowRank

#: A subspace from products in another order, in float64.
ORDER = 1e-9
#: An orthonormal basis in float32.
SINGLE = 1e-5
N, RANK = 7, 3


class Plain(LowRank):
    """A + P Qᵀ and its two multiplicative relatives, for all tensors."""

    def defect(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(self.skips)


def linear(side: str = "add", outputs: int = N, **options: Any) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(N, outputs, dtype=torch.float64)
    p4.perturb(layer, "weight", Plain, rank=RANK, side=side, directions="gradient", **options)
    return layer


def watched(module: nn.Module, seed: int = 3) -> tuple[p4.Site, Tensor]:
    """The site, told to watch, and the Ω that it will use."""
    (site,) = p4.sites(module)
    site.perturbation.start_sketch(torch.Generator().manual_seed(seed))
    return site, site.perturbation.sketch.probe.clone()  # type: ignore[union-attr]


def subspace(gradient: Tensor, probe: Tensor) -> Tensor:
    return linalg.orthonormal(gradient.mT @ (gradient @ probe))


def redrawn(site: p4.Site) -> Tensor:
    """V after a merge, of length 1."""
    site.perturbation.merge(site.base, torch.Generator().manual_seed(0), force=True)
    v = site.perturbation.v.detach()  # type: ignore[union-attr]
    return v / v.shape[-2] ** 0.5


def dense_gradient(site: p4.Site, loss: Any) -> Tensor:
    """∂L/∂W at the present W, for a loss that is a function of the weight."""
    weight = site.perturbation(site.base).detach().requires_grad_()
    return torch.autograd.grad(loss(weight), weight)[0]


@pytest.mark.parametrize("path", ["factored", "dense"])
@pytest.mark.parametrize(("side", "outputs"), [("add", N), ("add", 5), ("left", 5), ("right", 5)])
def test_sketch_of_a_layer(side: str, outputs: int, path: str) -> None:
    layer = linear(side, outputs)
    x, target = torch.randn(20, N, dtype=torch.float64), torch.randn(20, outputs, dtype=torch.float64)
    site, probe = watched(layer)
    y = layer(x) if path == "factored" else nn.functional.linear(x, layer.weight, layer.bias)
    (y - target).square().sum().backward()
    gradient = dense_gradient(site, lambda w: (x @ w.mT + layer.bias.detach() - target).square().sum())
    base = site.base.detach()
    acting = {"add": gradient, "left": gradient @ base.mT, "right": base.mT @ gradient}[side]
    torch.testing.assert_close(redrawn(site), subspace(acting, probe), rtol=ORDER, atol=ORDER)


def test_several_backward_passes_are_one_gradient() -> None:
    layer = linear()
    x = torch.randn(20, N, dtype=torch.float64)
    site, probe = watched(layer)
    for part in x.split(5):
        layer(part).pow(3).sum().backward()
    gradient = dense_gradient(site, lambda w: (x @ w.mT + layer.bias.detach()).pow(3).sum())
    torch.testing.assert_close(redrawn(site), subspace(gradient, probe), rtol=ORDER, atol=ORDER)


@pytest.mark.parametrize("form", ["additive", "exponential"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_sketch_of_a_flow_counts_its_determinant(form: Any, direction: str) -> None:
    """At B₀, where the inverse that the sketch uses is that of the weight."""
    torch.manual_seed(1)
    layer = p4.flows.InvertibleLinear(N, rank=RANK, form=form, init="orthogonal", directions="gradient").double()
    x = torch.randn(20, N, dtype=torch.float64)
    site, probe = watched(layer)
    z, logabsdet = getattr(layer, direction)(x)
    (z.pow(4).sum() - 3 * logabsdet).backward()

    def loss(w: Tensor) -> Tensor:
        sign = 1 if direction == "forward" else -1
        rows = x @ w.mT if direction == "forward" else torch.linalg.solve(w, x.mT).mT
        return rows.pow(4).sum() - 3 * sign * torch.linalg.slogdet(w)[1]

    gradient = dense_gradient(site, loss)
    acting = gradient if form == "additive" else site.base.detach().mT @ gradient
    torch.testing.assert_close(redrawn(site), subspace(acting, probe), rtol=ORDER, atol=ORDER)


def test_sketch_of_a_stack() -> None:
    torch.manual_seed(2)
    flow = p4.flows.InvertibleMLP(4, 6, rank=2, init="orthogonal", directions="gradient").double()
    x = torch.randn(20, 4, dtype=torch.float64)
    site, probe = watched(flow)
    z, logabsdet = flow(x)
    (z.square().sum() / 2 - logabsdet.sum()).backward()
    plain = p4.finalize(copy.deepcopy(flow))
    z, logabsdet = plain(x)
    (z.square().sum() / 2 - logabsdet.sum()).backward()
    torch.testing.assert_close(redrawn(site), subspace(plain.weight.grad, probe), rtol=ORDER, atol=ORDER)


def test_directions_are_random_where_no_gradient_was_seen() -> None:
    layer = linear()
    site, _ = watched(layer)
    v = redrawn(site)
    assert v.isfinite().all()
    assert not torch.allclose(v.mT @ v, torch.eye(RANK, dtype=v.dtype))


def test_directions_are_random_where_the_gradient_is_not_finite_or_zero() -> None:
    layer = linear()
    for factor in (0.0, torch.nan):
        site, _ = watched(layer)
        (layer(torch.randn(4, N, dtype=torch.float64)).sum() * factor).backward()
        assert redrawn(site).isfinite().all()


def test_tiny_gradients_count() -> None:
    layer = linear().float()
    site, probe = watched(layer)
    x = torch.randn(20, N)
    (layer(x).square().sum() * 1e-30).backward()
    gradient = dense_gradient(site, lambda w: (x @ w.mT + layer.bias.detach()).square().sum())
    torch.testing.assert_close(redrawn(site), subspace(gradient, probe), rtol=1e-3, atol=1e-3)


def train(layer: nn.Module, optimizer: Any, scheduler: p4.MergeScheduler, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, N, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("pause", [3, 4, 5])
def test_resume_is_exact(pause: int) -> None:
    def fresh() -> tuple[nn.Linear, torch.optim.Optimizer, p4.MergeScheduler]:
        layer = linear()
        optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
        return layer, optimizer, p4.MergeScheduler(layer, optimizer, every=4, optimizer_state="restart")

    straight, resumed = fresh(), fresh()
    train(*straight, range(pause))
    for one, other in zip(resumed, straight, strict=True):
        one.load_state_dict(copy.deepcopy(other.state_dict()))
    train(*straight, range(pause, 13))
    train(*resumed, range(pause, 13))
    for one, other in zip(straight[0].state_dict().values(), resumed[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_scheduler_chooses_for_all() -> None:
    layer = linear()
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    p4.MergeScheduler(layer, optimizer, every=4, directions="random")
    assert not next(p4.sites(layer)).perturbation.gradient_directions  # type: ignore[union-attr]
    p4.MergeScheduler(layer, optimizer, every=1, directions="gradient")
    assert next(p4.sites(layer)).perturbation.sketch is not None  # type: ignore[union-attr]


def test_only_the_step_before_a_merge_is_watched() -> None:
    layer = linear()
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=3)
    (site,) = p4.sites(layer)
    seen = []
    for step in range(6):
        seen.append(site.perturbation.sketch is not None)  # type: ignore[union-attr]
        train(layer, optimizer, scheduler, range(step, step + 1))
    assert seen == [False, False, True] * 2


def test_gradient_directions_reach_a_rotation_sooner() -> None:
    """The toy of the experiments, small: steps to a loss of 1e-4 with random and with gradient directions."""

    def steps(directions: Any) -> int:
        torch.manual_seed(0)
        n, layer = 24, nn.Linear(24, 24, bias=False)
        nn.init.eye_(layer.weight)
        target = nn.init.orthogonal_(torch.empty(n, n))
        p4.perturb(layer, "weight", Plain, rank=4, scale=0.5, directions=directions)
        optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=3e-2)
        scheduler = p4.MergeScheduler(layer, optimizer, every=5, optimizer_state="restart")
        for step in range(2000):
            x = torch.randn(128, n)
            optimizer.zero_grad()
            loss = (layer(x) - x @ target.mT).square().mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
            if loss < 1e-4:
                return step
        return 2000

    assert steps("gradient") < steps("random")


def test_unknown_directions_are_refused() -> None:
    with pytest.raises(p4.ArgumentError, match="`directions` must be random or gradient, got 'best'"):
        Plain(torch.eye(3), 1, directions="best")  # type: ignore[arg-type]


def test_directions_that_do_not_train() -> None:
    layer = linear(train_directions=False)
    layer(torch.randn(4, N, dtype=torch.float64)).sum().backward()
    perturbation: Any = next(p4.sites(layer)).perturbation
    assert perturbation.v.grad is None and perturbation.u.grad is not None
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=4)
    train(layer, optimizer, scheduler, range(9))
    assert scheduler.merged == 2


@pytest.mark.parametrize("form", ["additive", "exponential"])
def test_directions_for_the_inverse(form: Any) -> None:
    """With `loss_on="inverse"` U moves W⁻¹ by -U Vᵀ, and gradient directions are those of ∂L/∂W⁻¹."""
    torch.manual_seed(3)
    layer = nn.Linear(N, N, bias=False, dtype=torch.float64)
    p4.perturb(layer, "weight", p4.Invertible, rank=RANK, form=form, loss_on="inverse", directions="gradient")
    y = torch.randn(20, N, dtype=torch.float64)
    site, probe = watched(layer)
    perturbation: Any = site.perturbation
    x, logabsdet = perturbation.solve_logabsdet(site.base, y)
    (x.pow(4).sum() + 3 * logabsdet).backward()
    inverse = torch.linalg.inv(site.base.detach()).requires_grad_()
    ((y @ inverse.mT).pow(4).sum() - 3 * torch.linalg.slogdet(inverse)[1]).backward()
    scaled = redrawn(site) * N**0.5
    expected = site.base.detach().mT @ subspace(inverse.grad, probe) * N**0.5  # type: ignore[arg-type]
    torch.testing.assert_close(scaled, expected, rtol=1e-7, atol=1e-7)


def test_growth_is_limited_after_each_step() -> None:
    layer = nn.Linear(N, N, dtype=torch.float64)
    p4.perturb(layer, "weight", p4.Invertible, rank=RANK, max_update_norm=0.01)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=0.1)
    train(layer, optimizer, p4.MergeScheduler(layer, optimizer, every=100), range(3))
    perturbation: Any = next(p4.sites(layer)).perturbation
    size = float(torch.linalg.matrix_norm(perturbation.v.mT @ perturbation.scaled_u))
    assert size == pytest.approx(0.01)


def test_an_output_that_the_loss_ignores() -> None:
    layer = p4.flows.InvertibleLinear(N, rank=1, directions="gradient")
    site, _ = watched(layer)
    layer.inverse(torch.randn(4, N))[0].sum().backward()
    assert redrawn(site).isfinite().all()


def test_as_many_directions_as_dimensions() -> None:
    """The gradient of a wide matrix has fewer directions than rows of V."""
    layer = nn.Linear(6, 4)
    p4.perturb(layer, "weight", Plain, rank=6, directions="gradient")
    site, _ = watched(layer)
    layer(torch.randn(20, 6)).square().sum().backward()
    v = redrawn(site)
    assert v.shape == (6, 6) and v.isfinite().all() and int(torch.linalg.matrix_rank(v)) == 6
