"""The symplectic form J = [[0, I], [-I, 0]] on phase space `(2n,)`, and matrices that keep it up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.errors import ArgumentError
from p4torch.linalg import form

#: Corrections start from errors ‖MᵀJM - J‖, or `relative` ones, up to these on; a handful of steps reaches rounding.
NEAR, NEAR_RELATIVE, STEPS = 0.5, 1e-3, 8

#: Machine epsilons by which the cheap correction may move a matrix; beyond, the least one is worth its SVD.
CHEAP = 4

#: Machine epsilons of relative defect that rounding explains.
DRIFT = 32

#: Up to this size every merge corrects the whole matrix; larger ones only where a probe finds more than rounding.
ALL, PROBES = 64, 2


def form_error(matrix: Tensor) -> Tensor:
    """E = MᵀJM - J `(..., 2n, 2n)`, skew."""
    error, half = matrix.mT @ form(matrix), matrix.shape[-1] // 2
    error.diagonal(half, -2, -1).sub_(1)
    error.diagonal(-half, -2, -1).add_(1)
    return error


def relative(size: Tensor, matrix: Tensor) -> Tensor:
    """A size of E, per column, by the mean square of the singular values of M: rounding M leaves about ε of it."""
    square = torch.linalg.matrix_norm(matrix).square() / matrix.shape[-1]
    return size / square.clamp_min(torch.finfo(square.dtype).tiny)


def drifted(matrix: Tensor, seed: int) -> Tensor:
    """`(...)`: where a probe of E with random signs finds more than rounding of the matrix's dtype, in O(n²)."""
    exact, n = linalg.at_least_single(matrix), matrix.shape[-1]
    if n <= ALL:
        return torch.ones(matrix.shape[:-2], dtype=torch.bool, device=matrix.device)
    generator = torch.Generator().manual_seed(seed)
    probes = torch.randint(0, 2, (n, PROBES), generator=generator).to(exact) * 2 - 1
    off = exact.mT @ form(exact @ probes) - form(probes)
    return ~(relative(off.square().mean((-2, -1)).sqrt(), exact) <= DRIFT * torch.finfo(matrix.dtype).eps)


def resymplectified(matrix: Tensor) -> Tensor:
    """A symplectic matrix near M, in float64, by steps that square the error E = MᵀJM - J, O(n³) each:

        M <- M (I + JE/2),  towards M (JᵀMᵀJM)^(-1/2);  where that moves M by more than rounding, `least_step`.

    Rounding of M leaves E of size ε‖M‖², and the first kind then moves M by ε‖M‖² relative to itself, although S is
    only ε away. Matrices from which the steps would not converge stay as they are.
    """
    exact, eps = linalg.in_double(matrix), torch.finfo(matrix.dtype).eps
    error = form_error(exact)
    for _ in range(STEPS):
        size, norm = torch.linalg.matrix_norm(error), torch.linalg.matrix_norm(exact)
        mean = size / exact.shape[-1] ** 0.5
        near = (size < NEAR) | (relative(mean, exact) < NEAR_RELATIVE)
        near &= size > 4 * torch.finfo(exact.dtype).eps * norm.square()
        if not bool(near.any()):
            break
        step = exact @ form(error) / 2
        much = near & (torch.linalg.matrix_norm(step) > CHEAP * eps * norm)
        if bool(much.any()):
            step[much] = least_step(exact[much], error[much])
        moved = torch.where(near[..., None, None], exact + step, exact)
        after = form_error(moved)
        better = (torch.linalg.matrix_norm(after) < size / 2)[..., None, None]
        exact, error = torch.where(better, moved, exact), torch.where(better, after, error)
        if not bool(better.any()):
            break
    return exact


def least_step(matrix: Tensor, error: Tensor) -> Tensor:
    """The X of least Frobenius norm with MᵀJX + XᵀJM = -E: X = JMΛ, GΛ + ΛG = E with G = MᵀM, by an SVD of M."""
    _, values, right = torch.linalg.svd(matrix)
    squares = values.square()
    turned = right @ error @ right.mT / (squares[..., :, None] + squares[..., None, :])
    return form(matrix @ (right.mT @ turned @ right))


def rotation_of(matrix: Tensor) -> Tensor:
    """The nearest orthogonal symplectic matrix: the polar factor of the part (M + JᵀMJ)/2 that commutes with J. Raises
    ArgumentError where that part is singular."""
    exact = linalg.in_double(matrix)
    commuting = (exact + form(form(exact.mT).mT)) / 2  # (J Mᵀ)ᵀ = -M J, and J of it is JᵀMJ
    values = torch.linalg.svdvals(commuting)
    bad = ~(values[..., -1] > values[..., 0] * exact.shape[-1] * torch.finfo(matrix.dtype).eps)
    if bool(bad.any()):
        came = f"{int(bad.sum())} of {bad.numel()} far from it, whose part (M + JᵀMJ)/2 is singular"
        raise ArgumentError.of("tensor", "symplectic, or near a symplectic matrix", came)
    return linalg.orthonormalized(commuting)
