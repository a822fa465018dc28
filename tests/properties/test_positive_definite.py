"""Symmetric positive definite matrices: the congruence, what follows it through merges, and admission."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from tests.layers import path_gradients, trained_in
from torch import Tensor, nn

import p4torch as p4
from p4torch import linalg

#: A few small solves in float64, times condition numbers of about 100.
EXACT = 1e-10
#: float32 products of matrices of norm 1 to 10, at n <= 100.
ROUNDING = 1e-5
#: log|det| of a sum over n <= 100 eigenvalues after hundreds of merges in float32.
LOGABSDET = 1e-3
#: A tracked inverse in float32 after them, relative to its largest entry, and residuals in float64 of matrices that an
#: exponential has stretched.
INVERSE, STRETCHED = 1e-3, 1e-7
#: Gradients and sketches of them in float64, at n = 300.
GRADIENT = 1e-7


def definite(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """I/2 + GGᵀ/n, with eigenvalues from 0.5 to about 4.5."""
    drawn = torch.randn(shape, dtype=torch.float64)
    return (0.5 * torch.eye(shape[-1]) + drawn @ drawn.mT / shape[-1]).to(dtype)


def moved(base: Tensor, size: float = 0.1, **options: Any) -> p4.PositiveDefinite:
    """Of rank one unless `rank` says otherwise, with g = 1."""
    perturbation = p4.PositiveDefinite(base, **{"rank": 1, "scale": 1.0} | options)
    with torch.no_grad():
        perturbation.u.copy_(size * torch.randn(perturbation.u.shape))
    return perturbation


@given(n=st.integers(1, 8), k=st.integers(1, 3), batch=st.sampled_from([(), (2,)]), seed=st.integers(0, 2**31))
def test_the_congruence_is_the_dense_one(n: int, k: int, batch: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    base = definite(*batch, n, n)
    perturbation = moved(base, rank=min(k, n))
    factor = perturbation.root.factor
    torch.testing.assert_close(factor @ factor.mT, base, rtol=0, atol=EXACT)
    half = factor @ torch.linalg.matrix_exp(perturbation.u @ perturbation.v.mT)
    dense = half @ half.mT
    got = perturbation(base)
    torch.testing.assert_close(got, dense, rtol=0, atol=EXACT * float(dense.detach().abs().max()))
    sign, logabsdet = torch.linalg.slogdet(dense)
    torch.testing.assert_close(perturbation.logabsdet(base), logabsdet, rtol=0, atol=EXACT)
    assert torch.equal(perturbation.sign(base), sign)
    unit = perturbation.inverse(base) @ dense
    torch.testing.assert_close(unit, torch.eye(n, dtype=torch.float64).expand_as(unit), rtol=0, atol=STRETCHED)


@pytest.mark.parametrize("n", [5, 300])
def test_large_and_small_layers_take_their_own_path(n: int) -> None:
    base = definite(n, n)
    for got, expected in path_gradients(moved(base, 0.01, rank=2), base, EXACT):
        torch.testing.assert_close(got, expected, rtol=0, atol=GRADIENT * float(expected.abs().max()))


@pytest.mark.parametrize("shape", [(32, 32), (100, 100), (3, 8, 8)])
def test_everything_stays_together_through_merges(shape: tuple[int, ...]) -> None:
    """Also where only some rows of A are formed anew at a merge (n = 100)."""
    base = definite(*shape, dtype=torch.float32)
    perturbation = p4.PositiveDefinite(base, rank=2)
    for _ in range(300):
        with torch.no_grad():
            perturbation.u.copy_(3e-3 * torch.randn(perturbation.u.shape))
        weight = perturbation(base).detach()
        assert perturbation.merge(base).ok
        torch.testing.assert_close(base, weight, rtol=0, atol=ROUNDING * float(weight.abs().max()))
    assert torch.equal(base, base.mT)
    assert torch.linalg.eigvalsh(base.double()).min() > 0
    factor, tracked = perturbation.root.factor.double(), perturbation.tracked
    norm = float(torch.linalg.matrix_norm(base.double(), ord=2).max())
    torch.testing.assert_close(factor @ factor.mT, base.double(), rtol=0, atol=ROUNDING * norm)
    exact = torch.linalg.inv(base.double())
    torch.testing.assert_close(tracked.inverse.double(), exact, rtol=0, atol=INVERSE * float(exact.abs().max()))
    torch.testing.assert_close(tracked.logabsdet, torch.linalg.slogdet(base.double())[1], rtol=0, atol=LOGABSDET)
    perturbation.correct(base)
    assert torch.equal(base, base.mT)
    torch.testing.assert_close(tracked.logabsdet, torch.linalg.slogdet(base.double())[1], rtol=0, atol=LOGABSDET)


def test_a_merge_into_a_singular_matrix_is_skipped() -> None:
    base = definite(6, 6, dtype=torch.float32)
    kept = base.clone()
    perturbation = p4.PositiveDefinite(base, rank=1, scale=1.0)
    with torch.no_grad():
        perturbation.u.copy_(-30 * perturbation.v / perturbation.v.square().sum())  # exp(-30) in one direction
    report = perturbation.merge(base, force=True)
    assert not report.ok and report.reason is not None and "badly conditioned" in report.reason
    assert torch.equal(base, kept)


# --- admission ----------------------------------------------------------------------------------------------------


def test_a_definite_matrix_is_kept() -> None:
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight.copy_(definite(6, 6))
    weight = layer.weight.detach().clone()
    p4.perturb(layer, "weight", p4.PositiveDefinite)
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=ROUNDING)
    assert torch.equal(layer.weight, layer.weight.mT)
    assert type(p4.finalize(layer)) is nn.Linear


def test_another_one_is_symmetrised_and_its_eigenvalues_raised() -> None:
    base = torch.randn(6, 6, dtype=torch.float64)
    perturbation = p4.PositiveDefinite(base, floor=0.1)
    with pytest.warns(p4.ProjectionWarning, match="PositiveDefinite"):
        admitted = perturbation.right_inverse(base)
    values, vectors = torch.linalg.eigh((base + base.mT) / 2)
    expected = (vectors * values.clamp_min(0.1 * float(values[-1]))) @ vectors.mT
    torch.testing.assert_close(admitted, expected, rtol=0, atol=EXACT)
    torch.testing.assert_close(perturbation(admitted), admitted, rtol=0, atol=EXACT)


def test_defects() -> None:
    perturbation = p4.PositiveDefinite(torch.eye(2))
    assert perturbation.defect(torch.eye(2)) == 0
    torch.testing.assert_close(perturbation.defect(torch.diag(torch.tensor([1.0, -1.0]))).item(), 2.0)
    torch.testing.assert_close(perturbation.defect(torch.diag(torch.tensor([1.0, 0.0]))).item(), 1.0)
    torch.testing.assert_close(perturbation.defect(torch.tensor([[1.0, 0.1], [-0.1, 1.0]])).item(), 0.1 / 1.01**0.5)


@pytest.mark.parametrize(
    "tensor", [-torch.eye(3), torch.zeros(3, 3), torch.ones(3, 3).tril(-1) - torch.ones(3, 3).triu(1)]
)
def test_nothing_of_a_negative_matrix_can_be_kept(tensor: Tensor) -> None:
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight.copy_(tensor)
    with pytest.raises(p4.ArgumentError, match="`tensor` must be a matrix whose symmetric part has a positive eigenv"):
        p4.perturb(layer, "weight", p4.PositiveDefinite)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (torch.ones(2, 3), {}, r"`base` must be square, \(..., n, n\), for definite matrices, got \(2, 3\)"),
        (torch.eye(2, dtype=torch.complex64), {}, "`base` must be real, got torch.complex64"),
        (torch.full((2, 2), torch.nan), {}, "`base` must be finite"),
        (torch.eye(2), {"floor": 0.0}, "`floor` must be a positive number, got 0.0"),
        (torch.eye(2), {"rank": 0}, "`rank` must be an integer >= 1, got 0"),
    ],
)
def test_bad_input(base: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.PositiveDefinite(base, **options)


# --- dtypes and directions ----------------------------------------------------------------------------------------


def test_a_change_of_dtype() -> None:
    """Rounding parts A and L; the factor follows A, and the inverse does."""
    layer = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(definite(8, 8))
    p4.perturb(layer, "weight", p4.PositiveDefinite, rank=2)
    layer.bfloat16().float()
    (site,) = p4.sites(layer)
    perturbation: Any = site.perturbation
    weight = layer.weight.detach()
    torch.testing.assert_close(weight, site.base.detach(), rtol=0, atol=ROUNDING)
    factor = perturbation.root.factor
    torch.testing.assert_close(factor @ factor.mT, weight, rtol=0, atol=ROUNDING * float(weight.abs().max()))
    assert site.merge().ok
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=ROUNDING * float(weight.abs().max()))


def test_models_of_half_precision() -> None:
    layer = trained_in(torch.bfloat16, p4.PositiveDefinite, lr=1e-3, floor=0.1)
    assert torch.equal(layer.weight, layer.weight.mT)


@pytest.mark.parametrize("method", ["forward", "matmul", "solve", "inverse"])
@pytest.mark.parametrize("n", [6, 300])
def test_gradient_directions_see_the_symmetric_part_of_the_gradient(method: str, n: int) -> None:
    base = definite(n, n)
    perturbation = p4.PositiveDefinite(base, rank=2, directions="gradient")
    perturbation.start_sketch(torch.Generator().manual_seed(3))
    sketch: Any = perturbation.sketch
    x = torch.randn(400, n, dtype=torch.float64)
    arguments = (x,) if method in ("matmul", "solve") else ()
    target = torch.randn(*(x.shape if arguments else base.shape), dtype=torch.float64)
    (getattr(perturbation, method)(base, *arguments) * target).sum().backward()
    whole = base.clone().requires_grad_()
    dense: Any = {
        "forward": lambda: whole,
        "matmul": lambda: x @ whole.mT,
        "solve": lambda: torch.linalg.solve(whole, x.mT).mT,
        "inverse": lambda: torch.linalg.inv(whole),
    }[method]
    (gradient,) = torch.autograd.grad((dense() * target).sum(), whole)
    factor = perturbation.root.factor
    acting = factor.mT @ (gradient + gradient.mT) @ factor
    expected = linalg.orthonormal(acting.mT @ (acting @ sketch.probe))
    torch.testing.assert_close(sketch.directions(), expected, rtol=0, atol=GRADIENT)
