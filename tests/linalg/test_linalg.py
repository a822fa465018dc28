"""The identities of `linalg`, against dense computations in float64."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import example, given, strategies as st
from torch import Tensor

import p4torch as p4
from p4torch import linalg

#: Small well-conditioned matrices in float64.
EXACT = 1e-12
#: torch's matrix_exp stops its series early for small matrices: at norm 0.03 it is off by 6e-12.
MATRIX_EXP = 1e-10
#: The same through a product of several, with condition numbers up to about 1e3.
COMPOSED = 1e-9

sizes = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regular(seed: int, n: int, *batch: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64) + 0.3 / n**0.5 * draw(seed, *batch, n, n)


@given(sizes)
def test_small_solve_and_slogdet(size: tuple[int, int, int]) -> None:
    _, k, seed = size
    matrix, right = regular(seed, k, 2), draw(seed + 1, 2, k, 3)
    torch.testing.assert_close(linalg.solve(matrix, right), torch.linalg.solve(matrix, right), rtol=0, atol=EXACT)
    sign, logabsdet = linalg.slogdet(matrix)
    assert torch.equal(sign, torch.linalg.det(matrix).sign())
    torch.testing.assert_close(logabsdet, torch.linalg.det(matrix).abs().log(), rtol=0, atol=COMPOSED)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_one_right_side_for_a_stack_as_large_as_the_matrices(k: int) -> None:
    stack, right = regular(0, k, k), draw(1, k, k)
    expected = torch.linalg.inv(stack) @ right
    torch.testing.assert_close(linalg.solve(stack, right), expected, rtol=0, atol=EXACT)
    torch.testing.assert_close(linalg.solve_rows(stack, right.mT), expected.mT, rtol=0, atol=EXACT)
    torch.testing.assert_close(linalg.solve_rows(stack[0], right[0]), right[0] @ torch.linalg.inv(stack[0]).mT)


@pytest.mark.parametrize("k", [1, 2])
def test_the_sign_carries_no_graph(k: int) -> None:
    assert not linalg.slogdet(regular(0, k).requires_grad_())[0].requires_grad


@pytest.mark.parametrize("k", [1, 2])
def test_slogdet_of_a_singular_matrix(k: int) -> None:
    sign, logabsdet = linalg.slogdet(torch.zeros(k, k))
    assert sign == 0 and logabsdet == -torch.inf


@given(st.integers(1, 4), st.floats(0.0, 3.0), st.integers(0, 2**31))
@example(k=2, size=0.0625, seed=1)
def test_phi1_is_its_series_and_its_definition(k: int, size: float, seed: int) -> None:
    matrix = size / k * draw(seed, k, k)
    term, series = torch.eye(k, dtype=torch.float64), torch.zeros(k, k, dtype=torch.float64)
    for j in range(1, 80):  # sum of M^(j-1) / j!
        series, term = series + term / j, term @ matrix / j
    phi = linalg.phi1(matrix)
    scale = float(series.abs().max()) + 1
    torch.testing.assert_close(phi, series, rtol=0, atol=EXACT * scale)
    expm = torch.linalg.matrix_exp(matrix) - torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(matrix @ phi, expm, rtol=0, atol=MATRIX_EXP * scale)


@pytest.mark.parametrize("s", [0.0, 1e-20, -1e-9, 2e-8, 1e-5, 1e-3, -1.0, 30.0])
def test_phi1_of_a_number_with_two_derivatives(s: float) -> None:
    matrix = torch.tensor([[s]], dtype=torch.float64, requires_grad=True)
    phi = linalg.phi1(matrix)
    dense = linalg.phi1(torch.diag(torch.tensor([s, s], dtype=torch.float64)))[0, 0]
    torch.testing.assert_close(phi[0, 0], dense, rtol=EXACT, atol=0)
    (slope,) = torch.autograd.grad(phi.sum(), matrix, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), matrix)
    if abs(s) < 0.1:
        assert float(slope) == pytest.approx(1 / 2 + s / 3 + s**2 / 8, abs=1e-8)
        assert float(curvature) == pytest.approx(1 / 3 + s / 4, abs=1e-6)
    else:
        assert float(slope) == pytest.approx((math.exp(s) * (s - 1) + 1) / s**2)


@given(sizes)
def test_capacitance_is_the_determinant_lemma(size: tuple[int, int, int]) -> None:
    n, k, seed = size
    base, u, v = regular(seed, n), draw(seed + 1, n, k), draw(seed + 2, n, k)
    capacitance = linalg.capacitance(torch.linalg.solve(base, u), v)
    perturbed = torch.linalg.det(base + linalg.low_rank(u, v))
    scale = max(1.0, float(perturbed.abs()))
    torch.testing.assert_close(
        torch.linalg.det(capacitance) * torch.linalg.det(base), perturbed, rtol=0, atol=COMPOSED * scale
    )


def test_rows_times_any_leading_shape() -> None:
    matrix, x = draw(0, 3, 3), draw(1, 4, 5, 3)
    torch.testing.assert_close(linalg.rows_times(x, matrix), x @ matrix.mT)
    stack = draw(2, 4, 3, 3)
    torch.testing.assert_close(linalg.rows_times(x, stack), x @ stack.mT)


@given(sizes)
def test_refinement_repairs_a_poor_inverse(size: tuple[int, int, int]) -> None:
    n, k, seed = size
    base, u, v = regular(seed, n, 2), draw(seed + 1, 2, n, k), draw(seed + 3, 2, n, k)
    exact = torch.linalg.inv(base)
    poor = exact + 1e-6 * draw(seed + 2, 2, n, n)
    probes = draw(seed + 4, n, 3).sign()
    y, z, capacitance, off = linalg.refined_solves(base, poor, u, v, probes)
    torch.testing.assert_close(y, exact @ u, rtol=0, atol=COMPOSED)
    torch.testing.assert_close(z, v.mT @ exact, rtol=0, atol=COMPOSED)
    identity = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(capacitance, identity + v.mT @ exact @ u, rtol=0, atol=EXACT * n * k)
    residual = linalg.inversion_residual(base, poor) @ probes
    torch.testing.assert_close(off, residual.abs().amax((-2, -1)), rtol=0, atol=EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_blocks_of_rows_are_the_whole(dtype: torch.dtype, batch: tuple[int, ...], monkeypatch: Any) -> None:
    n = 7
    matrix, p, q = draw(0, *batch, n, n).to(dtype), draw(1, *batch, n, 2), draw(2, *batch, n, 2)
    kept, exact = matrix.clone(), matrix.double() + p @ q.mT
    for block in (1, 3 * matrix.numel() // n, 10 * matrix.numel()):
        monkeypatch.setattr(linalg, "BLOCK", block)
        left, right = linalg.both_sides(matrix, p, q.mT)
        torch.testing.assert_close(left, matrix.double() @ p, rtol=0, atol=EXACT)
        torch.testing.assert_close(right, q.mT @ matrix.double(), rtol=0, atol=EXACT)
        out, covered = torch.empty_like(matrix), 0
        for rows, stored, before in linalg.rounded_sum(matrix, p, q, out):
            assert torch.equal(stored, out[..., rows, :].double())
            torch.testing.assert_close(before, exact[..., rows, :], rtol=0, atol=EXACT)
            covered += stored.shape[-2]
        assert covered == n and torch.equal(matrix, kept)
        torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=EXACT)


@pytest.mark.parametrize("order", [2, 3, 7])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_hyperpower_has_exactly_its_order(order: int, batch: tuple[int, ...]) -> None:
    base = regular(0, 8, *batch)
    inverse = torch.linalg.inv(base) @ (torch.eye(8, dtype=torch.float64) - 0.2 * draw(1, *batch, 8, 8) / 8**0.5)
    residual = linalg.inversion_residual(base, inverse)
    after = linalg.inversion_residual(base, linalg.hyperpower(base, inverse, order))
    torch.testing.assert_close(after, torch.linalg.matrix_power(residual, order), rtol=0, atol=EXACT)


def test_hyperpower_knows_three_orders() -> None:
    with pytest.raises(p4.ArgumentError, match="`order` must be 2, 3 or 7, got 4"):
        linalg.hyperpower(torch.eye(2), torch.eye(2), 4)


def test_probe_sees_what_is_wrong_and_rounding_is_below_one_unit() -> None:
    base = regular(0, 64).float()
    inverse = torch.linalg.inv(base)
    probes = draw(1, 64, 4).sign()
    residual, unit = linalg.probe_residual(base.double(), inverse.double(), probes)
    assert residual <= torch.finfo(torch.float32).eps * unit
    residual, unit = linalg.probe_residual(base.double(), inverse.double() + 1e-3, probes)
    assert residual > 100 * torch.finfo(torch.float32).eps * unit


def test_lu_of_stacks_matrix_by_matrix() -> None:
    """As one call, and where matrices are large one by one; solutions broadcast."""
    stack = torch.stack([regular(seed, linalg.LU_STACK + 1) for seed in range(6)]).view(2, 3, 65, 65)
    right = draw(7, 3, 65, 2)
    for function, arguments in (
        (torch.linalg.inv, (stack,)),
        (torch.linalg.slogdet, (stack,)),
        (torch.linalg.solve, (stack, right)),
    ):
        torch.testing.assert_close(tuple(linalg.unbatched(function, *arguments)), tuple(function(*arguments)))


@pytest.mark.slow
def test_large_stacks_do_not_hang_on_several_threads() -> None:
    """MKL's batched LU does (n = 160 and two threads); in a process of its own, which can be ended."""
    code = (
        "import torch, p4torch as p4; torch.set_num_threads(2); base = torch.eye(160).repeat(3, 1, 1); "
        "base += 0.01 * torch.randn_like(base)\n"
        "for property, rank in ((kind, rank) for kind in (p4.Invertible, p4.UnitDeterminant) for rank in (None, 1)):\n"
        "    module = torch.nn.Module(); module.w = torch.nn.Parameter(base.clone())\n"
        "    p4.perturb(module, 'w', property, rank=rank)\n"
        "    (site,) = p4.sites(module); next(site.perturbation.own_parameters())[1].data.add_(0.001)\n"
        "    assert site.merge(force=True).ok; site.refresh(); site.correct()\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr
