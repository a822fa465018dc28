"""Symmetric positive definite matrices: their factors, nearness, and rounding."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.core.transaction import Veto
from p4torch.errors import ArgumentError
from p4torch.properties._math.drift import block_size

#: Projections leave no eigenvalue below this times what rounding may move it by: inverses are of use then.
EIGENVALUE_MARGIN = 4


class Root(nn.Module):
    """A square root L `(..., n, n)`, A = L Lᵀ, not necessarily triangular. A frozen Parameter in the base's dtype."""

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


def congruence(columns: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """P, Q `(..., n, 2k)` with L (I + a bᵀ) (I + a bᵀ)ᵀ Lᵀ = L Lᵀ + P Qᵀ, from L [a, b] `(..., n, 2k)` and b: with M =
    L a and F = L b + M bᵀb / 2 it is L Lᵀ + M Fᵀ + F Mᵀ."""
    m, f = columns.chunk(2, -1)
    f = f + m @ (b.mT @ b) / 2
    return torch.cat([m, f], -1), torch.cat([f, m], -1)


def indefinite(tensor: Tensor) -> Tensor:
    """`(...)`: where the smallest eigenvalue is not above what rounding the entries explains, ε ‖A‖ / 2."""
    return _margin(_eigenvalues(tensor), tensor.dtype) <= 0


def veto_indefinite(matrix: Tensor, inverse: Tensor) -> Veto:
    """A veto where A, which is L Lᵀ but for rounding, is `indefinite`. Where ε/2 ‖A‖ ‖A⁻¹‖ < 1 in Frobenius norms, no
    eigenvalue comes as near to 0 as rounding could bring it: O(n²), and O(n³) elsewhere only."""
    sizes = (torch.linalg.vector_norm(part, dim=(-2, -1), dtype=torch.float64) for part in (matrix, inverse))
    uncertain = ~(torch.finfo(matrix.dtype).eps / 2 * prod(sizes) < 1) & matrix.isfinite().flatten(-2).all(-1)
    if bool(uncertain.any()):
        uncertain[uncertain.clone()] = indefinite(matrix[uncertain])
    return Veto("R_B(A) is not positive definite to the precision of its dtype", uncertain)


def definiteness_defect(tensor: Tensor) -> Tensor:
    """‖A - Aᵀ‖ / 2‖A‖ in the Frobenius norm; where A is not definite to working precision, also 1 - λ/|λ|max with its
    least eigenvalue λ, which is 1 for a singular one: the relative distance alone could not tell it from rounding."""
    exact, values = linalg.scaled_by_largest(tensor), _eigenvalues(tensor)
    tiny = torch.finfo(values.dtype).tiny
    size = torch.linalg.matrix_norm(exact).clamp_min(tiny)
    skew = torch.linalg.matrix_norm(exact - exact.mT) / (2 * size)
    negative = 1 - values[..., 0] / values.abs().amax(-1).clamp_min(tiny)
    return skew + torch.where(_margin(values, tensor.dtype) <= 0, negative, 0.0)


def _eigenvalues(tensor: Tensor) -> Tensor:
    """The eigenvalues of the symmetric part in rising order, `(..., n)`, float64, in units of the largest entry."""
    exact = linalg.scaled_by_largest(tensor)
    return torch.linalg.eigvalsh((exact + exact.mT) / 2)


def _margin(values: Tensor, dtype: torch.dtype) -> Tensor:
    """By how much the smallest eigenvalue is above what rounding explains: it moves entries by at most ε/2 of
    themselves, hence eigenvalues by ε/2 ‖A‖ in the Frobenius norm (Weyl)."""
    return values[..., 0] - torch.finfo(dtype).eps / 2 * torch.linalg.vector_norm(values, dim=-1)


def with_eigenvalue_floor(tensor: Tensor, floor: float) -> Tensor:
    """The symmetric part, with eigenvalues below `floor` times the largest raised to it, or to `EIGENVALUE_MARGIN` √n ε
    times the largest, if that is more. Raises ArgumentError where none is positive."""
    exact, eps = tensor.double(), torch.finfo(tensor.dtype).eps
    floor = max(floor, EIGENVALUE_MARGIN * tensor.shape[-1] ** 0.5 * eps)
    values, vectors = torch.linalg.eigh((exact + exact.mT) / 2)
    bad = ~(values[..., -1] > 0)
    if bool(bad.any()):
        got = f"{int(bad.sum())} of {bad.numel()} without any: nothing of it could be kept"
        raise ArgumentError.of("tensor", "a matrix whose symmetric part has a positive eigenvalue", got)
    values = torch.maximum(values, floor * values[..., -1:])
    return symmetric_from_lower((vectors * values[..., None, :]) @ vectors.mT).to(tensor.dtype)


def symmetric_from_lower(matrix: Tensor) -> Tensor:
    """The lower triangle, copied to the upper one: exactly symmetric."""
    return matrix.tril() + matrix.tril(-1).mT


def recomputed_from_factor(matrix: Tensor, factor: Tensor, turn: int | None) -> Tensor:
    """A with `drift.block_size` rows and columns J recomputed as L_J Lᵀ, and symmetrized; all of them with `turn` None.
    In the dtype of A, from products in float64. O(n²) a row."""
    n, exact = matrix.shape[-1], factor.double()
    count = block_size(n)
    if turn is None or count == n:
        return symmetric_from_lower(exact @ exact.mT).to(matrix.dtype)
    part = torch.arange(turn * count, (turn + 1) * count, device=matrix.device) % n
    block = (exact[..., part, :] @ exact.mT).to(matrix.dtype)
    matrix = matrix.clone()
    matrix[..., part, :] = block
    matrix[..., :, part] = block.mT
    return symmetric_from_lower(matrix)


def logabsdet_change_by_rounding(before: Tensor, after: Tensor, inverse: Tensor) -> Tensor:
    """log|det after| - log|det before| of matrices that differ by rounding: tr(A⁻¹ δ), `(...)` in
    float64. δ is exact in the dtype that both have."""
    return (inverse.mT * (after - before)).sum((-2, -1), dtype=torch.float64)
