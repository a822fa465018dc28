"""The symplectic form J = [[0, I], [-I, 0]] on phase space `(2n,)`, and matrices that preserve it up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.transaction import Veto
from p4torch.errors import ArgumentError, PropertyWarning, warn
from p4torch.linalg import symplectic_form
from p4torch.properties._math.checks import RESIDUAL_BOUND

#: Corrections start from errors ‖MᵀJM - J‖, or those by the mean square of singular values, or of columns, up to these
#: on; a handful of steps reaches rounding. Rounding to 8 bits leaves 0.01 of the last one.
RADIUS, RADIUS_RELATIVE, RADIUS_COLUMNS, STEPS = 0.5, 1e-3, 0.05, 8

#: Machine epsilons by which the step M JE/2 may move a column; beyond, the minimum-norm step is worth its SVD.
MAX_FIRST_STEP = 4

#: Machine epsilons of `column_error` that rounding explains.
DRIFT = 32

#: Up to this size every merge corrects the whole matrix; larger ones only where a probe finds more than rounding.
FULL_SIZE, PROBES = 64, 2


def form_error(matrix: Tensor) -> Tensor:
    """E = MᵀJM - J `(..., 2n, 2n)`, skew."""
    error, half = matrix.mT @ symplectic_form(matrix), matrix.shape[-1] // 2
    error.diagonal(half, -2, -1).sub_(1)
    error.diagonal(-half, -2, -1).add_(1)
    return error


def column_error(matrix: Tensor) -> Tensor:
    """max_j (Σ_i e_ij²)^½ `(...)` of e_ij = E_ij / max(|m_i| |m_j|, |J_ij|), with the columns m_i of M: rounding M
    leaves about ε of it, whatever the sizes of its columns, and a column that is off by a share of itself that share.
    Where a product of sizes overflows, J_ij is nothing beside it."""
    unit, size = _unit_columns(linalg.at_least_single(matrix.detach()))
    error, half = unit.mT @ symplectic_form(unit), matrix.shape[-1] // 2
    product = size[..., :half] * size[..., half:]
    pairs = error.diagonal(half, -2, -1) * product.clamp(max=1) - 1 / product.clamp(min=1)
    error.diagonal(half, -2, -1).copy_(pairs)
    error.diagonal(-half, -2, -1).copy_(-pairs)
    return torch.linalg.vector_norm(error, dim=-2).amax(-1)


def _unit_columns(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of M, each by its length, and the lengths `(..., 2n)`."""
    largest = matrix.abs().amax(-2, keepdim=True)
    scaled = matrix / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(scaled, dim=-2, keepdim=True).clamp_min(1)
    return scaled / length, (largest * length).squeeze(-2)


def relative_to_norm(size: Tensor, matrix: Tensor) -> Tensor:
    """A size of E, per column, by the mean square of the singular values of M: rounding M leaves about ε of it."""
    square = torch.linalg.matrix_norm(matrix).square() / matrix.shape[-1]
    return size / square.clamp_min(torch.finfo(square.dtype).tiny)


def warn_of_large_entries(matrix: Tensor, name: str) -> None:
    """Say where rounding leaves M so far from S that MᵀJM - J is no small number."""
    error = float(form_error(linalg.in_double(matrix)).abs().max())
    if not error <= RESIDUAL_BOUND:
        warn(
            f"`{name}` is symplectic up to rounding only: its entries, up to {float(matrix.abs().max()):.3g}, leave "
            f"MᵀJM - J as large as {error:.3g}, and inverse and determinant are not -JMᵀJ and 1. Use a longer dtype "
            f"than {matrix.dtype}, or start from a smaller matrix",
            PropertyWarning,
        )


def veto_nonsymplectic(matrix: Tensor) -> Veto:
    """A veto where M is finite, but not in S up to √ε of its dtype."""
    far = ~(column_error(matrix) <= torch.finfo(matrix.dtype).eps ** 0.5) & matrix.isfinite().flatten(-2).all(-1)
    return Veto("R_B(M) is too near a pole, or too large for its dtype", far)


def drifted(matrix: Tensor, seed: int) -> Tensor:
    """`(...)`: where a probe of E with random signs finds more than rounding of the matrix's dtype, in O(n²)."""
    exact, n = linalg.at_least_single(matrix), matrix.shape[-1]
    if n <= FULL_SIZE:
        return torch.ones(matrix.shape[:-2], dtype=torch.bool, device=matrix.device)
    generator = torch.Generator().manual_seed(seed)
    probes = torch.randint(0, 2, (n, PROBES), generator=generator).to(exact) * 2 - 1
    unit, size = _unit_columns(exact)
    off = unit.mT @ symplectic_form(unit @ probes) - symplectic_form(probes / size[..., None]) / size[..., None]
    return ~(off.abs().amax((-2, -1)) <= DRIFT * torch.finfo(matrix.dtype).eps)


def resymplectified(matrix: Tensor) -> Tensor:
    """A symplectic matrix near M, in float64, by steps that square the error E = MᵀJM - J, O(n³) each:

        M <- M (I + JE/2),  towards M (JᵀMᵀJM)^(-1/2);  where that moves M by more than rounding, `minimum_norm_step`.

    Rounding of M leaves E of size ε‖M‖², and the first kind then moves M by ε‖M‖² relative to itself, although S is
    only ε away. Matrices from which the steps would not converge stay as they are.
    """
    exact, eps = linalg.in_double(matrix), torch.finfo(matrix.dtype).eps
    error, enough = form_error(exact), max(4 * torch.finfo(exact.dtype).eps, eps / 16)
    size = _column_error_of(error, exact)
    for _ in range(STEPS):
        total = torch.linalg.matrix_norm(error)
        near = (total < RADIUS) | (relative_to_norm(total / exact.shape[-1] ** 0.5, exact) < RADIUS_RELATIVE)
        near = (near | (size < RADIUS_COLUMNS)) & (size > enough)
        if not bool(near.any()):
            break
        step, lengths = exact @ symplectic_form(error) / 2, torch.linalg.vector_norm(exact, dim=-2)
        large = near & (torch.linalg.vector_norm(step, dim=-2) > MAX_FIRST_STEP * eps * lengths).any(-1)
        if bool(large.any()):
            step[large] = minimum_norm_step(exact[large], error[large])
        candidate = torch.where(near[..., None, None], exact + step, exact)
        new_error = form_error(candidate)
        new_size = _column_error_of(new_error, candidate)
        better = new_size < size / 2
        where = better[..., None, None]
        exact, error, size = (
            torch.where(where, candidate, exact),
            torch.where(where, new_error, error),
            new_size.where(better, size),
        )
        if not bool(better.any()):
            break
    return exact


def _column_error_of(error: Tensor, matrix: Tensor) -> Tensor:
    """`column_error` from E, for matrices of which no square overflows."""
    length, half = torch.linalg.vector_norm(matrix, dim=-2), matrix.shape[-1] // 2
    product = length[..., :, None] * length[..., None, :]
    for offset in (half, -half):
        product.diagonal(offset, -2, -1).clamp_(min=1)
    return torch.linalg.vector_norm(error / product.clamp_min(torch.finfo(product.dtype).tiny), dim=-2).amax(-1)


def minimum_norm_step(matrix: Tensor, error: Tensor) -> Tensor:
    """The X of least Frobenius norm with MᵀJX + XᵀJM = -E: X = JMΛ, GΛ + ΛG = E with G = MᵀM, by an SVD of M."""
    _, values, right = torch.linalg.svd(matrix)
    squares = values.square()
    multiplier = right @ error @ right.mT / (squares[..., :, None] + squares[..., None, :])
    return symplectic_form(matrix @ (right.mT @ multiplier @ right))


def nearest_orthogonal_symplectic(matrix: Tensor) -> Tensor:
    """The nearest orthogonal symplectic matrix: the polar factor of the part (M + JᵀMJ)/2 that commutes with J. Raises
    ArgumentError where that part is singular."""
    exact = linalg.in_double(matrix)
    commuting = (exact + symplectic_form(symplectic_form(exact.mT).mT)) / 2  # (J Mᵀ)ᵀ = -M J, and J of it is JᵀMJ
    values = torch.linalg.svdvals(commuting)
    bad = ~(values[..., -1] > values[..., 0] * exact.shape[-1] * torch.finfo(matrix.dtype).eps)
    if bool(bad.any()):
        got = f"{int(bad.sum())} of {bad.numel()} far from it, whose part (M + JᵀMJ)/2 is singular"
        raise ArgumentError.of("tensor", "symplectic, or near a symplectic matrix", got)
    return linalg.orthonormalized(commuting)
