"""The symplectic form J = [[0, I], [-I, 0]] on phase space `(2n,)`, and matrices that keep it up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.errors import ArgumentError

#: Newton-Schulz steps are taken from errors ‖MᵀJM - J‖ up to NEAR on; a handful reaches rounding.
NEAR, STEPS = 0.5, 8

#: Machine epsilons of relative defect that rounding explains.
DRIFT = 32

#: Up to this size every merge corrects the whole matrix; larger ones only where a probe finds more than rounding.
ALL, PROBES = 64, 2


def form(x: Tensor) -> Tensor:
    """J x for columns x `(..., 2n, k)`."""
    first, second = x.chunk(2, dim=-2)
    return torch.cat([second, -first], dim=-2)


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
    """M (JᵀMᵀJM)^(-1/2), in float64, by M <- M (I + JE/2), E = MᵀJM - J, which squares the error. O(n³) a step.
    Matrices from which that would not converge stay as they are."""
    exact = linalg.in_double(matrix)
    for _ in range(STEPS):
        error = form_error(exact)
        size = torch.linalg.matrix_norm(error)
        near = (size < NEAR) & (size > 4 * torch.finfo(exact.dtype).eps * torch.linalg.matrix_norm(exact).square())
        if not bool(near.any()):
            break
        exact = torch.where(near[..., None, None], exact + exact @ form(error) / 2, exact)
    return exact


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
