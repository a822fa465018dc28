"""Symmetric positive definite matrices: their factors, nearness, and rounding."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.core.transaction import Veto
from p4torch.errors import ArgumentError
from p4torch.properties._math.drift import ALL, FEW, PARTS

#: Projections leave no eigenvalue below this times what rounding may move it by: inverses are of use then.
ABOVE = 4


class Root(nn.Module):
    """L `(..., n, n)` with A = L Lᵀ, not necessarily triangular. A frozen Parameter in the base's dtype."""

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(linalg.eye_like(base).expand_as(base).clone(), requires_grad=False)

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        """The factor of A that is nearest to the present one, C polar(CᵀL) with C Cholesky's; from L = I, the square
        root of A. O(n³). Where A is not positive definite, L stays."""
        lower, failed = torch.linalg.cholesky_ex(base.double())
        lower = torch.where((failed != 0)[..., None, None], self.factor.double(), lower)
        self.factor.copy_(lower @ linalg.orthonormalized(lower.mT @ self.factor.double()))


def congruence(moved: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """P, Q `(..., n, 2k)` with L (I + a bᵀ) (I + a bᵀ)ᵀ Lᵀ = L Lᵀ + P Qᵀ, from L [a, b] `(..., n, 2k)` and b: with M =
    L a and F = L b + M bᵀb / 2 it is L Lᵀ + M Fᵀ + F Mᵀ."""
    m, f = moved.chunk(2, -1)
    f = f + m @ (b.mT @ b) / 2
    return torch.cat([m, f], -1), torch.cat([f, m], -1)


def indefinite(tensor: Tensor) -> Tensor:
    """`(...)`: where the smallest eigenvalue is not above what rounding the entries explains, ε ‖A‖ / 2."""
    return _least(_spectrum(tensor), tensor.dtype) <= 0


def veto_indefinite(matrix: Tensor, inverse: Tensor) -> Veto:
    """A veto where A, which is L Lᵀ but for rounding, is `indefinite`. Where ε/2 ‖A‖ ‖A⁻¹‖ < 1 in Frobenius norms, no
    eigenvalue comes as near to 0 as rounding could bring it: O(n²), and O(n³) elsewhere only."""
    sizes = (torch.linalg.vector_norm(part, dim=(-2, -1), dtype=torch.float64) for part in (matrix, inverse))
    unsure = ~(torch.finfo(matrix.dtype).eps / 2 * prod(sizes) < 1) & matrix.isfinite().flatten(-2).all(-1)
    if bool(unsure.any()):
        unsure[unsure.clone()] = indefinite(matrix[unsure])
    return Veto("R_B(A) is not positive definite to the precision of its dtype", unsure)


def distance(tensor: Tensor) -> Tensor:
    """‖A - Aᵀ‖ / 2‖A‖ in the Frobenius norm; where A is not definite to working precision, also 1 - λ/|λ|max with its
    least eigenvalue λ, which is 1 for a singular one: the relative distance alone could not tell it from rounding."""
    exact, values = linalg.scaled_by_largest(tensor), _spectrum(tensor)
    tiny = torch.finfo(values.dtype).tiny
    size = torch.linalg.matrix_norm(exact).clamp_min(tiny)
    skew = torch.linalg.matrix_norm(exact - exact.mT) / (2 * size)
    negative = 1 - values[..., 0] / values.abs().amax(-1).clamp_min(tiny)
    return skew + torch.where(_least(values, tensor.dtype) <= 0, negative, 0.0)


def _spectrum(tensor: Tensor) -> Tensor:
    """The eigenvalues of the symmetric part in rising order, `(..., n)`, float64, in units of the largest entry."""
    exact = linalg.scaled_by_largest(tensor)
    return torch.linalg.eigvalsh((exact + exact.mT) / 2)


def _least(values: Tensor, dtype: torch.dtype) -> Tensor:
    """By how much the smallest eigenvalue is above what rounding explains: it moves entries by at most ε/2 of
    themselves, hence eigenvalues by ε/2 ‖A‖ in the Frobenius norm (Weyl)."""
    return values[..., 0] - torch.finfo(dtype).eps / 2 * torch.linalg.vector_norm(values, dim=-1)


def raised(tensor: Tensor, floor: float) -> Tensor:
    """The symmetric part, with eigenvalues below `floor` times the largest raised to it, or to `ABOVE` √n ε times the
    largest, if that is more. Raises ArgumentError where none is positive."""
    exact, floor = tensor.double(), max(floor, ABOVE * tensor.shape[-1] ** 0.5 * torch.finfo(tensor.dtype).eps)
    values, vectors = torch.linalg.eigh((exact + exact.mT) / 2)
    bad = ~(values[..., -1] > 0)
    if bool(bad.any()):
        came = f"{int(bad.sum())} of {bad.numel()} without any: nothing of it could be kept"
        raise ArgumentError.of("tensor", "a matrix whose symmetric part has a positive eigenvalue", came)
    values = torch.maximum(values, floor * values[..., -1:])
    return mirrored((vectors * values[..., None, :]) @ vectors.mT).to(tensor.dtype)


def mirrored(matrix: Tensor) -> Tensor:
    """The lower triangle and its mirror image: exactly symmetric."""
    return matrix.tril() + matrix.tril(-1).mT


def reformed(matrix: Tensor, factor: Tensor, turn: int | None) -> Tensor:
    """A with some rows and columns J formed anew as L_J Lᵀ, and mirrored; with `turn` None all of them. In the dtype of
    A, from products in float64. O(n²) a row: all of n <= `ALL`, else max(`FEW`, n / `PARTS`) of them."""
    n, exact = matrix.shape[-1], factor.double()
    if turn is None or n <= ALL:
        return mirrored(exact @ exact.mT).to(matrix.dtype)
    count = max(FEW, n // PARTS)
    part = torch.arange(turn * count, (turn + 1) * count, device=matrix.device) % n
    block = (exact[..., part, :] @ exact.mT).to(matrix.dtype)
    matrix = matrix.clone()
    matrix[..., part, :] = block
    matrix[..., :, part] = block.mT
    return mirrored(matrix)


def shift_of_logabsdet(before: Tensor, after: Tensor, inverse: Tensor) -> Tensor:
    """log|det after| - log|det before| of matrices that differ by rounding: tr(A⁻¹ δ), `(...)` in
    float64. δ is exact in the dtype that both have."""
    return (inverse.mT * (after - before)).sum((-2, -1), dtype=torch.float64)
