"""The norm that every step can afford: a bound from above, with its gradient."""

from __future__ import annotations

from functools import partial
from math import log
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from p4torch.properties._math.schatten import ORDER, norm_above, norm_above_sum

#: Errors of LAPACK's singular values, and of sums of products, in float64.
EXACT = 1e-12
#: A gradient against that of another formula, in float64: condition numbers of singular vectors are in it.
GRADIENT = 1e-6


def exact_norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix.detach().double(), ord=2)


@given(
    kind=st.sampled_from(["random", "cluster", "steep", "huge", "tiny"]),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_it_is_above_and_close(kind: str, n: int, m: int, seed: int) -> None:
    torch.manual_seed(seed)
    matrix = torch.randn(2, n, m, dtype=torch.float64)
    if kind == "cluster":
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        matrix = left @ right
    matrix = matrix * {"huge": 1e150, "tiny": 1e-150}.get(kind, 1.0)
    if kind == "steep":
        matrix = matrix * 10.0 ** -torch.arange(m, dtype=torch.float64)
    norm, bound = exact_norm(matrix), norm_above(matrix)
    assert bool((bound >= norm * (1 - EXACT)).all())
    assert bool((bound <= norm * (1 + 2 * log(min(n, m)) / ORDER + EXACT)).all())


@pytest.mark.parametrize("shape", [(200, 256), (256, 200)])
def test_it_is_above_for_large_matrices_of_equal_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64))
    assert exact_norm(matrix) <= norm_above(matrix) <= exact_norm(matrix) * (1 + 2 * log(200) / ORDER)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3), (2, 4, 3)])
def test_its_derivatives(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm_above, (matrix,))
    assert torch.autograd.gradgradcheck(norm_above, (matrix,), fast_mode=True)
    (gradient,) = torch.autograd.grad(norm_above(matrix).sum(), matrix)
    left, _, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
    expected = left[..., :, :1] @ right[..., :1, :]  # of the largest singular value
    torch.testing.assert_close(gradient, expected, rtol=0, atol=GRADIENT)


def test_of_zeros() -> None:
    matrix = torch.zeros(3, 4, requires_grad=True)
    norm = norm_above(matrix)
    norm.backward()  # type: ignore[no-untyped-call]
    assert 0 <= float(norm.detach()) <= torch.finfo(torch.float32).tiny and not matrix.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("rank", [1, 3])
@given(size=st.sampled_from([1e-6, 0.1, 10.0]), seed=st.integers(0, 2**31))
def test_the_sum_is_bounded(rank: int, size: float, seed: int) -> None:
    torch.manual_seed(seed)
    base, u, v = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((9, 7), (9, rank), (7, rank)))
    u = size * u
    moved, known = exact_norm(base + u @ v.mT), exact_norm(base)
    bound = norm_above_sum(base, u, v, known)
    assert bool((bound >= moved * (1 - EXACT)).all())
    assert bool((bound <= (known + exact_norm(u @ v.mT)) * 2**0.5).all())


def test_the_sum_of_nothing_is_the_norm() -> None:
    base = torch.randn(9, 7)
    u, v = torch.zeros(9, 2, requires_grad=True), torch.randn(7, 2)
    bound = norm_above_sum(base, u, v, exact_norm(base))
    torch.testing.assert_close(bound, exact_norm(base), rtol=EXACT, atol=0)
    assert bool(torch.autograd.grad(bound, u)[0].isfinite().all())


@pytest.mark.parametrize("rewrite", [partial(torch.compile, fullgraph=True, backend="aot_eager"), torch.func.vmap])
def test_rewritten(rewrite: Any) -> None:
    function = rewrite(norm_above)
    matrix = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(function(matrix), norm_above(matrix), rtol=EXACT, atol=0)
