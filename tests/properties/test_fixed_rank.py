"""Matrices of bounded rank: factors, their balance, growth of the rank, and admission."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from tests.layers import trained_in
from torch import Tensor, nn

import p4torch as p4
from p4torch.properties._math.factors import BALANCE_CUTOFF, balanced

#: A few small products and decompositions in float64.
EXACT = 1e-12
#: float32 products of thin factors.
ROUNDING = 1e-5

SHAPES = [(6, 6), (9, 4), (4, 9), (3, 7, 5)]


def of_rank(rank: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    left = torch.randn(*shape[:-1], rank, dtype=torch.float64)
    return (left @ torch.randn(*shape[:-2], rank, shape[-1], dtype=torch.float64)).to(dtype)


def moved(base: Tensor, rank: int, size: float = 0.3) -> p4.FixedRank:
    perturbation = p4.FixedRank(base, rank)
    with torch.no_grad():
        for value in (perturbation.u, perturbation.v):
            value.copy_(size * torch.randn(value.shape))
    return perturbation


def singular_values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.detach().double())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_rank_stays_through_merges(shape: tuple[int, ...], rank: int) -> None:
    base = of_rank(rank, *shape)
    torch.testing.assert_close(p4.FixedRank(base, rank)(base), base, rtol=0, atol=EXACT)
    perturbation = moved(base, rank)
    for _ in range(5):
        weight = perturbation(base).detach()
        assert singular_values(weight)[..., rank:].max() <= EXACT
        assert perturbation.merge(base).ok
        torch.testing.assert_close(base, weight, rtol=0, atol=EXACT)
        torch.testing.assert_close(perturbation(base), base, rtol=0, atol=EXACT)
        with torch.no_grad():
            perturbation.u.normal_()


@pytest.mark.parametrize(("rank", "shape"), [(2, (9, 7)), (5, (7, 6)), (2, (5, 5))])
def test_rows_go_through_the_factors_or_the_product(rank: int, shape: tuple[int, int]) -> None:
    base = of_rank(rank, *shape)
    perturbation = moved(base, rank)
    bias = torch.randn(shape[0], dtype=torch.float64)
    for x in (torch.randn(2, 3, shape[1], dtype=torch.float64), torch.randn(shape[1], dtype=torch.float64)):
        expected = x @ perturbation(base).mT + bias
        torch.testing.assert_close(perturbation.affine(base, x, bias), expected, rtol=0, atol=EXACT)


def test_factors_share_the_singular_values() -> None:
    base = of_rank(2, 8, 6)
    perturbation = moved(base, 2)
    perturbation.merge(base)
    factors = perturbation.factors
    values = singular_values(base)[:2]
    for factor in (factors.left, factors.right):
        got = torch.linalg.eigvalsh(factor.mT @ factor).flip(-1)
        expected = values if float(values[1] / values[0]) > BALANCE_CUTOFF else got
        torch.testing.assert_close(got, expected, rtol=0, atol=EXACT * float(values[0]))


@given(n=st.integers(3, 8), m=st.integers(3, 8), k=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_balance_keeps_the_product_and_moves_the_factors_little(n: int, m: int, k: int, seed: int) -> None:
    torch.manual_seed(seed)
    left, right = torch.randn(n, k, dtype=torch.float64), torch.randn(m, k, dtype=torch.float64)
    once = balanced(left, right)
    torch.testing.assert_close(once[0] @ once[1].mT, left @ right.mT, rtol=0, atol=EXACT)
    for before, after in zip(once, balanced(*once), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=EXACT)


def test_a_refresh_leaves_the_factors_as_they_were() -> None:
    base = of_rank(3, 8, 6)
    perturbation = moved(base, 3)
    perturbation.merge(base)
    before = [value.clone() for value in perturbation.factors.parameters()]
    perturbation.refresh(base)
    for got, expected in zip(perturbation.factors.parameters(), before, strict=True):
        torch.testing.assert_close(got.detach(), expected.detach(), rtol=0, atol=EXACT)


@pytest.mark.parametrize("base", [torch.zeros(6, 5), of_rank(1, 6, 5, dtype=torch.float32)])
def test_the_rank_can_grow(base: Tensor) -> None:
    """B₀ is not stationary where the base has a smaller rank than it may have."""
    layer = nn.Linear(5, 6, bias=False)
    with torch.no_grad():
        layer.weight.copy_(base)
    p4.perturb(layer, "weight", p4.FixedRank, rank=3)
    torch.testing.assert_close(layer.weight.detach(), base, rtol=0, atol=ROUNDING)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=10)
    target = of_rank(3, 6, 5, dtype=torch.float32)
    for _ in range(1000):
        loss = (layer.weight - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert float(loss.detach()) < 1e-2 * float(target.square().sum())
    assert scheduler.skipped == 0


# --- admission ----------------------------------------------------------------------------------------------------


def test_a_plain_layer_is_cut_off_and_given_back() -> None:
    layer = nn.Linear(7, 5)
    left, values, right = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    with pytest.warns(p4.ProjectionWarning, match=r"FixedRank \(defect 0\.\d+\)"):
        p4.perturb(layer, "weight", p4.FixedRank, rank=2)
    expected = (left[:, :2] * values[:2]) @ right[:2]
    torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=0, atol=ROUNDING)
    weight = layer.weight.detach().clone()
    layer.weight = of_rank(2, 5, 7, dtype=torch.float32)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(layer.weight.detach(), weight)
    assert type(p4.finalize(layer)) is nn.Linear


def test_defects() -> None:
    perturbation = p4.FixedRank(torch.zeros(3, 3), 1)
    assert perturbation.defect(torch.zeros(3, 3)) == 0
    assert perturbation.defect(torch.ones(3, 3)) <= EXACT
    torch.testing.assert_close(float(perturbation.defect(torch.diag(torch.tensor([4.0, 3.0, 0.0])))), 0.6)


@pytest.mark.parametrize(
    ("base", "rank", "message"),
    [
        (torch.ones(3, 4), 0, "`rank` must be an integer from 1 to 3, got 0"),
        (torch.ones(3, 4), 4, "`rank` must be an integer from 1 to 3, got 4"),
        (torch.ones(3, 4), 1.0, "`rank` must be an integer from 1 to 3, got 1.0"),
        (torch.eye(2, dtype=torch.complex64), 1, "`base` must be real, got torch.complex64"),
        (torch.ones(2), 1, "`base` must be of at least 2 dimensions"),
    ],
)
def test_bad_input(base: Tensor, rank: Any, message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.FixedRank(base, rank)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision(dtype: torch.dtype) -> None:
    layer = trained_in(dtype, p4.FixedRank, rank=2)
    assert singular_values(layer.weight)[2:].max() <= 8 * torch.finfo(dtype).eps
