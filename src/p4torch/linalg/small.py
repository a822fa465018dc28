"""Small matrices `(..., k, k)`: solutions, determinants, φ₁ of the exponential, the symplectic form."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch.linalg.precision import at_least_single, eye_like, unbatched


def slogdet(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Sign and log|det| of `(..., k, k)`; written out for k = 1, where LAPACK costs more than the rest."""
    if matrix.shape[-1] == 1:
        scalar = matrix[..., 0, 0]
        return scalar.detach().sgn(), scalar.abs().log()
    sign, logabsdet = unbatched(torch.linalg.slogdet, at_least_single(matrix))
    return sign.detach(), logabsdet


def logabsdet(matrix: Tensor) -> Tensor:
    """log|det| of `(..., k, k)` alone."""
    return matrix.abs().log().squeeze((-2, -1)) if matrix.shape[-1] == 1 else slogdet(matrix)[1]


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix⁻¹ right, `(..., k, k)` and `(..., k, m)`."""
    if matrix.shape[-1] == 1:
        return right / matrix
    if right.dim() == matrix.dim() - 1:  # torch would take a square one for a stack of vectors
        right = right.unsqueeze(0)
    return unbatched(torch.linalg.solve, at_least_single(matrix), at_least_single(right)).to(right.dtype)


def solve_rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """rows matrixᵀ⁻¹, `(..., n, n)` and rows `(..., m, n)` or a single one `(n,)`."""
    if rows.dim() == 1:
        return solve_rows(matrix, rows.unsqueeze(0)).squeeze(0)
    return solve(matrix, rows.mT).mT


def phi1(matrix: Tensor) -> Tensor:
    """φ₁(M) = M⁻¹ (eᴹ - I), also for singular M: the top right block of exp([[M, I], [0, 0]]). `(..., k, k)`."""
    if matrix.shape[-1] == 1:
        # (e^s - 1) / s; near 0 its series, which keeps two derivatives exact
        small = matrix.abs() < torch.finfo(matrix.dtype).eps ** 0.25
        safe = torch.where(small, torch.ones_like(matrix), matrix)
        series = 1 + matrix / 2 * (1 + matrix / 3 * (1 + matrix / 4 * (1 + matrix / 5)))
        return torch.where(small, series, torch.expm1(safe) / safe)
    k = matrix.shape[-1]
    exact = at_least_single(matrix)
    top = torch.cat([exact, eye_like(exact).expand_as(exact)], dim=-1)
    block = torch.cat([top, torch.zeros_like(top)], dim=-2)
    return torch.linalg.matrix_exp(block)[..., :k, k:].to(matrix.dtype)


def symplectic_form(x: Tensor) -> Tensor:
    """J x for columns x `(..., 2n, k)`, J = [[0, I], [-I, 0]]."""
    first, second = x.chunk(2, dim=-2)
    return torch.cat([second, -first], dim=-2)
