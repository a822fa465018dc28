"""Volume-preserving matrices: determinant 1, through every step and many merges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

import p4torch as p4

#: Small well-conditioned matrices in float64.
EXACT = 1e-10
#: |log det| of a float32 matrix of this many rows, in machine epsilons a row: a rounding of each entry may make one.
EPSILONS = 4


def unit(n: int, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    matrix = torch.eye(n, dtype=torch.float64) + 0.3 / n**0.5 * torch.randn(*batch, n, n).double()
    return (matrix / torch.linalg.det(matrix)[..., None, None] ** (1 / n)).to(dtype)


def moved(base: Tensor, size: float = 0.3, **options: Any) -> p4.UnitDeterminant:
    perturbation = p4.UnitDeterminant(base, **options)
    with torch.no_grad():
        perturbation.u.copy_(size * torch.randn(perturbation.u.shape))
    return perturbation


@given(
    n=st.integers(3, 8),
    rank=st.integers(1, 2),
    batch=st.sampled_from([(), (3,), (2, 2)]),
    size=st.sampled_from([1e-3, 0.3, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_everything_against_lapack(n: int, rank: int, batch: tuple[int, ...], size: float, seed: int) -> None:
    torch.manual_seed(seed)
    base = unit(n, *batch)
    perturbation = moved(base, size, rank=rank)
    weight = perturbation(base).detach()
    sign, logabsdet = torch.linalg.slogdet(weight)
    condition = float(torch.linalg.cond(weight).max())
    allowed = 1e-13 * n * condition**2
    assert torch.equal(perturbation.sign(base), sign)
    assert not perturbation.logabsdet(base).any()
    torch.testing.assert_close(logabsdet, torch.zeros_like(logabsdet), rtol=0, atol=allowed)
    x = torch.randn(*batch, 4, n, dtype=torch.float64)
    for got, expected in (
        (perturbation.matmul(base, x), x @ weight.mT),
        (perturbation.solve(base, x), x @ torch.linalg.inv(weight).mT),
        (perturbation.inverse(base), torch.linalg.inv(weight)),
    ):
        torch.testing.assert_close(got.detach(), expected, rtol=0, atol=allowed * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("rank", [1, 3])
def test_the_perturbation_is_the_exponential_of_a_nilpotent_matrix(rank: int) -> None:
    perturbation = moved(unit(6), rank=rank)
    p, q = perturbation.factors(perturbation.u, perturbation.v)
    generator, eye = p @ q.mT, torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(generator @ generator, torch.zeros_like(generator), rtol=0, atol=EXACT)
    torch.testing.assert_close(eye + generator, torch.linalg.matrix_exp(generator), rtol=0, atol=EXACT)


@pytest.mark.filterwarnings("error::p4torch.ProjectionWarning")
def test_a_matrix_of_the_set_is_kept() -> None:
    layer = nn.Linear(5, 5, dtype=torch.float64)
    weight = unit(5)
    with torch.no_grad():
        layer.weight.copy_(weight)
    p4.perturb(layer, "weight", p4.UnitDeterminant, rank=2)
    assert torch.equal(layer.weight, weight)


def test_another_determinant_is_scaled_with_a_warning() -> None:
    layer = nn.Linear(5, 5)
    weight = 3 * unit(5, dtype=torch.float32)
    with torch.no_grad():
        layer.weight.copy_(weight)
    with pytest.warns(p4.ProjectionWarning, match="UnitDeterminant"):
        p4.perturb(layer, "weight", p4.UnitDeterminant)
    torch.testing.assert_close(layer.weight.detach(), weight / 3)


def test_what_is_nearly_in_the_set_gets_full_precision() -> None:
    base = unit(5) * (1 + 1e-10)
    perturbation = p4.UnitDeterminant(base)
    assert perturbation.defect(perturbation.right_inverse(base)) <= EPSILONS * 5 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (torch.diag(torch.tensor([1.0, 1.0, -1.0])), {}, "`tensor` must be of positive determinant, got 1 of 1"),
        (torch.zeros(3, 3), {}, "`base` must be nonsingular"),
        (torch.ones(3, 4), {}, "`base` must be square"),
        (torch.eye(3, dtype=torch.complex64), {}, "`base` must be real"),
        (torch.eye(3), {"rank": 3}, "`rank` must be less than n = 3, got 3"),
        (torch.eye(1), {"rank": 1}, "`rank` must be less than n = 1, got 1"),
        (torch.eye(1), {}, r"`base` must be of size 2 at least, got \(1, 1\)"),
        (torch.eye(3), {"rank": 0}, "`rank` must be an integer >= 1, got 0"),
    ],
)
def test_bad_input(base: Tensor, options: dict[str, Any], message: str) -> None:
    layer = nn.Module()
    layer.weight = nn.Parameter(base)
    with pytest.raises(p4.ArgumentError, match=message):
        p4.perturb(layer, "weight", p4.UnitDeterminant, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 4).to(dtype)
    nn.init.eye_(layer.weight)
    p4.perturb(layer, "weight", p4.UnitDeterminant, rank=2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=2)
    for _ in range(4):
        optimizer.zero_grad()
        layer(torch.randn(4, 4, dtype=dtype)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    assert scheduler.merged == 2
    (site,) = p4.sites(layer)
    assert float(site.perturbation.defect(site.base)) <= EPSILONS * 4 * torch.finfo(dtype).eps


def walk(merges: int, n: int, size: float) -> None:
    """Random merges in float32: det stays 1, and what is tracked tells the truth."""
    base = unit(n, dtype=torch.float32)
    perturbation = p4.UnitDeterminant(base, rank=2)
    base = perturbation.right_inverse(base)
    merged = 0
    for _ in range(merges):
        with torch.no_grad():
            perturbation.u.copy_(size / n**0.5 * torch.randn(n, 2))
        merged += perturbation.merge(base).merged
    eps = torch.finfo(torch.float32).eps
    assert merged == merges
    sign, logabsdet = torch.linalg.slogdet(base.double())
    assert sign == 1
    condition = float(torch.linalg.cond(base.double()))
    assert abs(float(logabsdet)) <= EPSILONS * n * eps * math.sqrt(condition)
    assert abs(float(logabsdet - perturbation.tracked.logabsdet)) <= EPSILONS * n * eps * math.sqrt(condition)
    residual = base.double() @ perturbation.tracked.inverse.double() - torch.eye(n)
    assert float(residual.abs().max()) <= EPSILONS * eps * condition


def test_a_walk_of_merges() -> None:
    walk(200, 16, 0.1)


@pytest.mark.slow
def test_a_long_walk_of_merges() -> None:
    walk(2000, 64, 0.02)


def test_what_float32_cannot_hold_is_refused() -> None:
    """Random products grow apart without end: SL(n) is not compact."""
    base = unit(8, dtype=torch.float32)
    perturbation = p4.UnitDeterminant(base, rank=1, scale=1.0)
    base, reasons = perturbation.right_inverse(base), set()
    for _ in range(500):
        with torch.no_grad():
            perturbation.u.copy_(0.3 * torch.randn(8, 1))
        reasons |= set(perturbation.merge(base).reasons)
    assert any("badly conditioned" in reason for reason in reasons)
    residual = base.double() @ perturbation.tracked.inverse.double() - torch.eye(8)
    assert float(residual.abs().max()) <= 1.0 and bool(base.isfinite().all())


@pytest.mark.slow
def test_ten_thousand_adam_steps_in_float32() -> None:
    n = 32
    layer = nn.Linear(n, n, bias=False)
    nn.init.eye_(layer.weight)
    p4.perturb(layer, "weight", p4.UnitDeterminant, rank=2)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-3)
    scheduler = p4.MergeScheduler(layer, optimizer, every=20)
    target = unit(n, dtype=torch.float32)
    for _ in range(10_000):
        x = torch.randn(16, n)
        loss = (layer(x) - x @ target.mT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert scheduler.merged == 500
    assert loss < 0.1
    logabsdet = torch.linalg.slogdet(layer.weight.detach().double())[1]
    assert abs(float(logabsdet)) <= EPSILONS * n * torch.finfo(torch.float32).eps
