"""Bounded spectral norms: the certificate, and merges that stay inside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

import p4torch as p4
from p4torch.properties._math import norms
from p4torch.properties.spectral_bound import DENSE_SIZE

#: Errors of LAPACK's singular values in float64.
EXACT = 1e-12
#: Small products in float32.
SINGLE = 1e-5


def exact_norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix.detach().double(), ord=2)


def with_values(values: Tensor, n: int, m: int) -> Tensor:
    left = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0][:, : len(values)]
    right = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64))[0][:, : len(values)]
    return (left * values) @ right.mT


HARD = {
    "cluster": lambda p: torch.ones(p, dtype=torch.float64),
    "near": lambda p: 1 - 1e-9 * torch.arange(p, dtype=torch.float64),
    "steep": lambda p: 10.0 ** -torch.arange(p, dtype=torch.float64),
    "pair": lambda p: torch.cat([torch.ones(1), torch.full((p - 1,), 1 - 1e-4)]).double(),
    "huge": lambda p: 1e150 * torch.rand(p, dtype=torch.float64),
    "tiny": lambda p: 1e-150 * torch.rand(p, dtype=torch.float64),
    "random": lambda p: torch.rand(p, dtype=torch.float64),
}


@given(kind=st.sampled_from(sorted(HARD)), n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_the_certificate_is_an_upper_bound_and_tight(kind: str, n: int, m: int, seed: int) -> None:
    torch.manual_seed(seed)
    matrix = with_values(HARD[kind](min(n, m)), n, m)
    norm, bound = exact_norm(matrix), norms.norm_bound(matrix)
    assert norm * (1 - EXACT) <= bound <= norm * (1 + 2 * norms.SLACK)


@given(n=st.integers(2, 12), factor=st.sampled_from([0.5, 0.999, 1.001, 1.1, 10.0]), seed=st.integers(0, 2**31))
def test_stopping_early_still_bounds(n: int, factor: float, seed: int) -> None:
    torch.manual_seed(seed)
    matrix = torch.randn(3, n, n + 1, dtype=torch.float64)
    norm = exact_norm(matrix)
    bound = norms.norm_bound(matrix, factor * norm)
    assert bool((bound >= norm * (1 - EXACT)).all())
    assert bool(((bound <= factor * norm) == (factor > 1)).all())


def test_a_zero_matrix_has_a_bound() -> None:
    assert 0 <= float(norms.norm_bound(torch.zeros(3, 3))) <= torch.finfo(torch.float32).tiny


def test_the_norm_of_a_low_rank_matrix() -> None:
    u, v = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(norms.norm_of_low_rank(u, v), exact_norm(u @ v.mT))


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (2, 4, 9)])
def test_clipping_cuts_singular_values_and_nothing_else(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    limit = values[..., 2]
    expected = (left * values.clamp_max(limit[..., None])[..., None, :]) @ right
    torch.testing.assert_close(norms.clip_norm(matrix, limit), expected, rtol=0, atol=100 * EXACT)


# --- the property -------------------------------------------------------------------------------------------------


def test_without_a_bound_the_norm_of_the_base_is_kept() -> None:
    layer = nn.Linear(7, 4)
    weight = layer.weight.detach().clone()
    p4.perturb(layer, "weight", p4.SpectralBound)
    assert torch.equal(layer.weight, weight)
    (site,) = p4.sites(layer)
    certificate: Any = site.perturbation.certificate  # type: ignore[union-attr]
    assert float(exact_norm(weight)) <= float(certificate.bound) <= float(exact_norm(weight)) * (1 + 2 * norms.SLACK)


@pytest.mark.parametrize("method", ["clip", "scale"])
def test_a_layer_outside_is_projected(method: Any) -> None:
    layer = nn.Linear(6, 6)
    nn.init.orthogonal_(layer.weight)
    with pytest.warns(p4.ProjectionWarning, match="SpectralBound"):
        p4.perturb(layer, "weight", p4.SpectralBound, bound=0.5, method=method)
    assert 0.499 <= exact_norm(layer.weight) <= 0.5


@pytest.mark.parametrize("shape", [(6, 6), (3, 5, 8)])
def test_a_merge_inside_changes_nothing(shape: tuple[int, ...]) -> None:
    base = torch.randn(shape)
    perturbation = p4.SpectralBound(base, bound=100.0, rank=2)
    norm = perturbation.certificate.norm.clone()
    with torch.no_grad():
        perturbation.u.normal_()
    weight = perturbation(base).detach()
    assert perturbation.merge(base).ok
    torch.testing.assert_close(base, weight, rtol=0, atol=SINGLE)
    assert bool((exact_norm(base) <= perturbation.certificate.norm).all())
    assert bool((perturbation.certificate.norm > norm).all())  # the cheap certificate


@pytest.mark.parametrize("method", ["clip", "scale"])
@pytest.mark.parametrize("shape", [(6, 6), (3, 5, 8), (DENSE_SIZE + 10, DENSE_SIZE + 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_merge_outside_comes_back(method: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base = torch.randn(shape, dtype=dtype)
    perturbation = p4.SpectralBound(base, rank=2, at="merge", method=method)
    bound = perturbation.certificate.bound.clone()
    with torch.no_grad():
        perturbation.u.normal_()
    left, values, right = torch.linalg.svd(perturbation(base).detach().double(), full_matrices=False)
    assert perturbation.merge(base).ok
    assert bool((exact_norm(base) <= perturbation.certificate.norm).all())
    assert bool((perturbation.certificate.norm <= bound).all())
    if method == "clip":
        expected = (left * torch.minimum(values, bound[..., None])[..., None, :]) @ right
    else:
        expected = (left * (values * (bound / values[..., 0])[..., None])[..., None, :]) @ right
    room = 2e-3 * float(bound.max())
    assert float(torch.linalg.matrix_norm(base - expected, ord=2).max()) <= room


def test_only_the_matrices_outside_are_cut() -> None:
    base = torch.stack([torch.eye(4), 0.1 * torch.eye(4)])
    perturbation = p4.SpectralBound(base, bound=1.5, rank=1, scale=1.0, at="merge")
    with torch.no_grad():
        perturbation.u.copy_(perturbation.v / perturbation.v.square().sum(1, keepdim=True))
    weight = perturbation(base).detach()
    perturbation.merge(base)
    torch.testing.assert_close(base[1], weight[1])
    assert exact_norm(weight[0]) > 1.9 and exact_norm(base[0]) <= 1.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_change_to_a_shorter_dtype_is_noticed(dtype: torch.dtype) -> None:
    layer = p4.perturb(nn.Linear(6, 6), "weight", p4.SpectralBound)
    (site,) = p4.sites(layer)
    certificate: Any = site.perturbation.certificate  # type: ignore[union-attr]
    bound = certificate.bound.clone()
    layer.to(dtype)
    assert certificate.bound.dtype == certificate.norm.dtype == torch.float64
    assert torch.equal(certificate.bound, bound) and torch.isinf(certificate.norm)
    assert p4.merge(layer)[0].ok
    assert exact_norm(site.base) <= certificate.norm <= bound


def test_saving_and_copying() -> None:
    layer = p4.perturb(nn.Linear(6, 6), "weight", p4.SpectralBound, bound=2.0)
    reference = p4.perturb(nn.Linear(6, 6), "weight", p4.SpectralBound, bound=2.0)
    reference.load_state_dict(layer.state_dict())
    for other in (reference, copy.deepcopy(layer)):
        (one,), (two,) = p4.sites(layer), p4.sites(other)
        for name, value in one.perturbation.state_dict().items():
            assert torch.equal(two.perturbation.state_dict()[name], value)
    short = p4.perturb(nn.Linear(6, 6).half(), "weight", p4.SpectralBound, bound=2.0)
    short.load_state_dict(layer.state_dict())
    (site,) = p4.sites(short)
    assert torch.isinf(site.perturbation.certificate.norm)  # type: ignore[union-attr]


def test_a_longer_dtype_rounds_nothing() -> None:
    layer = p4.perturb(nn.Linear(6, 6), "weight", p4.SpectralBound)
    (site,) = p4.sites(layer)
    norm = site.perturbation.certificate.norm.clone()  # type: ignore[operator,union-attr]
    layer.double()
    assert torch.equal(site.perturbation.certificate.norm, norm)  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (torch.eye(2), {"bound": 0.0}, "`bound` must be a positive number, got 0.0"),
        (torch.zeros(2, 3), {}, "`bound` must be a number for a base with a matrix of zeros, got None"),
        (torch.eye(2), {"at": "end"}, "`at` must be one of step, merge, got 'end'"),
        (torch.eye(2), {"method": "cut"}, "`method` must be one of clip, scale, got 'cut'"),
        (torch.eye(2, dtype=torch.complex64), {}, "`base` must be real, got torch.complex64"),
        (torch.ones(2), {}, "`base` must be of at least 2 dimensions"),
    ],
)
def test_bad_input(base: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.SpectralBound(base, **options)


# --- at every step --------------------------------------------------------------------------------------------------


def move(perturbation: p4.SpectralBound, size: float) -> None:
    with torch.no_grad():
        for _, value in perturbation.own_parameters():
            value.copy_(size * torch.randn_like(value))


SHAPES = [(6, 6), (9, 4), (3, 5, 8), (1, 7)]
LARGE = (DENSE_SIZE + 3, DENSE_SIZE + 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-4, 0.01, 1.0, 1e4])
def test_the_bound_holds_for_every_b(shape: tuple[int, ...], rank: Any, dtype: torch.dtype, size: float) -> None:
    check_the_bound(shape, rank, dtype, size)


@pytest.mark.parametrize("rank", [None, "whole"])
@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_the_bound_holds_for_large_matrices(rank: Any, size: float) -> None:
    check_the_bound(LARGE, rank, torch.float32, size)


def check_the_bound(shape: tuple[int, ...], rank: Any, dtype: torch.dtype, size: float) -> None:
    base = torch.randn(shape).to(dtype)
    perturbation = p4.SpectralBound(base, rank=rank)
    bound = perturbation.certificate.bound
    move(perturbation, size)
    weight = perturbation(base)
    assert bool((exact_norm(weight) <= perturbation.norm(base)).all())
    assert bool((perturbation.norm(base) <= bound).all())
    x = torch.randn(3, shape[-1]).to(dtype)
    scale = float(x.double().norm() * bound.max())
    expected = x.double() @ weight.detach().double().mT
    tolerance = 10 * torch.finfo(dtype).eps * scale
    torch.testing.assert_close(perturbation.matmul(base, x).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [*SHAPES, LARGE])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("size", [0.01, 10.0])
def test_merges_leave_the_weight_to_the_bit(shape: tuple[int, ...], rank: int | None, size: float) -> None:
    base = torch.randn(shape)
    perturbation = p4.SpectralBound(base, rank=rank)
    for _ in range(3):
        move(perturbation, size)
        weight = perturbation(base).detach()
        assert perturbation.merge(base).ok
        assert torch.equal(perturbation(base), weight) and torch.equal(base, weight)
        assert bool((exact_norm(base) <= perturbation.certificate.norm).all())
        assert perturbation.defect(base).max() == 0


def test_inside_it_is_the_plain_sum() -> None:
    base = torch.randn(6, 6)
    perturbation = p4.SpectralBound(base, bound=100.0)
    move(perturbation, 0.1)
    assert torch.equal(perturbation(base), base + perturbation.b)


def test_a_large_matrix_is_of_low_rank_unless_asked() -> None:
    assert p4.SpectralBound(torch.eye(DENSE_SIZE)).full
    large = p4.SpectralBound(torch.eye(DENSE_SIZE + 1))
    assert not large.full and large.rank == 8
    assert not p4.SpectralBound(torch.eye(4), rank=3).full
    assert p4.SpectralBound(torch.eye(DENSE_SIZE + 1), rank="whole").full


def test_the_gradient_knows_of_the_scale() -> None:
    """A step along the largest singular vectors leaves a matrix at the bound where it is."""
    base = torch.diag(torch.tensor([2.0, 1.0, 0.5])).double()
    perturbation = p4.SpectralBound(base, bound=1.0)
    with torch.no_grad():
        perturbation.b.copy_(0.1 * torch.eye(3))
    (gradient,) = torch.autograd.grad(perturbation(base)[0, 0], perturbation.b)
    assert gradient.abs().max() <= 1e-3  # of a Schatten norm of order 8194, not quite the largest
    (gradient,) = torch.autograd.grad(perturbation(base)[1, 1], perturbation.b)
    assert gradient[1, 1] > 0.4 and gradient[0, 0] < -0.2


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("shape", [(6, 5), (DENSE_SIZE + 2, DENSE_SIZE + 1)])
def test_no_step_looks_at_values(rank: int | None, shape: tuple[int, int]) -> None:
    """A look would fail on the meta device."""
    layer = p4.perturb(nn.Linear(*shape), "weight", p4.SpectralBound, rank=rank).to("meta")
    layer(torch.randn(3, shape[0], device="meta")).sum().backward()
    (site,) = p4.sites(layer)
    assert all(value.grad is not None for value in site.trainable().values())


def train(steps: int, **options: Any) -> None:
    """A target of twice the norm that is allowed."""
    layer = nn.Linear(12, 12, bias=False)
    nn.init.orthogonal_(layer.weight)
    p4.perturb(layer, "weight", p4.SpectralBound, bound=1.1, **options)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=20)
    target = 2 * torch.linalg.qr(torch.randn(12, 12))[0]
    (site,) = p4.sites(layer)
    for _ in range(steps):
        x = torch.randn(16, 12)
        loss = (layer(x) - x @ target.mT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if options.get("at") != "merge":
            assert exact_norm(layer.weight) <= 1.1
        assert exact_norm(site.base) <= 1.1
    assert scheduler.merged == steps // 20


OPTIONS = [{}, {"rank": 2}, {"at": "merge", "rank": 2}, {"at": "merge", "rank": 2, "method": "scale"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_training_against_the_bound(options: dict[str, Any]) -> None:
    train(200, **options)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_ten_thousand_steps_against_the_bound(options: dict[str, Any]) -> None:
    train(10_000, **options)
