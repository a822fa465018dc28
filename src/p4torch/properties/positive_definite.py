"""Symmetric positive definite matrices, by congruence of a tracked factor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch._options import check_number
from p4torch.core.blocks import Blocks
from p4torch.core.directions import LinearOperator, matrix_operator
from p4torch.core.low_rank import LowRank
from p4torch.core.shaped import Shaped, check_one_side
from p4torch.core.transaction import Proposal
from p4torch.linalg import fused_linear
from p4torch.linalg.matrix_groups import GENERAL_EXPONENTIAL
from p4torch.linalg.tracked_inverse import TrackedInverse, TrackedUpdate
from p4torch.properties._math.checks import ORDER, veto_residual
from p4torch.properties._math.definite import (
    Root,
    congruence,
    definiteness_defect,
    indefinite,
    logabsdet_change_by_rounding,
    recomputed_from_factor,
    symmetric_from_lower,
    veto_indefinite,
    with_eigenvalue_floor,
)
from p4torch.properties._math.inverse_gradients import record_inverse, record_solve
from p4torch.properties._math.shapes import check_real_matrix, check_square


class PositiveDefinite(Shaped):
    """S = {A `(..., n, n)` : Aᵀ = A, xᵀA x > 0}, with a factor L, A = L Lᵀ, and A⁻¹ tracked. L moves, by congruence:

        R_B(A) = L E Eᵀ Lᵀ
        blocks:    E = P blockdiag(exp(g B_i)) Pᵀ
        low rank:  E = exp(g U Vᵀ) = I + g U φ₁(g VᵀU) Vᵀ,   U, V `(..., n, k)`

    Positive definite for every B. With M = g L U φ₁(g VᵀU) and F = L V + M VᵀV / 2 the low-rank one is A + M Fᵀ + F Mᵀ:
    a symmetric change of rank 2k. B₀ is B = 0, in m b(b+1)/2 directions, or U = 0 and V ~ N(0, 1), where
    dA = g L (dU Vᵀ + V dUᵀ) Lᵀ has nk - k(k-1)/2.

    L (any factor, not a triangular one) is the truth and A follows it. A low-rank merge updates both, O(n²k), and then
    forms some rows and columns of A, in turn, anew from L: max(16, n/32) of them, all if n <= 64; a merge of blocks
    forms all of A, O(n³). So A is exactly symmetric and within rounding of L Lᵀ. A⁻¹ follows A, log|det R_B(A)| =
    log|det A| + 2 g tr(VᵀU) or 2 g Σ tr B_i, the sign is 1. `correct` forms A from L, O(n³), and makes a step of the
    iterative inversion. A merge is skipped if A has become singular to working precision.

    Args:
        base: `(..., n, n)`. Another one is projected: symmetrised, and eigenvalues raised to `floor`.
        rank, block, scale, directions, train_directions: see `p4torch.core.shaped.Shaped`; there is one side only.
        floor: of a projection: least eigenvalue relative to the largest; 4√n ε in short dtypes, where that is more.

    Raises:
        ArgumentError: for a base that is not square, real and finite, or whose symmetric part has no positive
            eigenvalue: nothing of it could be kept; for options out of range.

    Source: Bhatia (2007), Positive Definite Matrices, chapter 6, for congruences; Higham (1988), for nearness.
    """

    def __init__(self, base: Tensor, rank: int | None = None, *, floor: float = 1e-3, **options: Any) -> None:
        check_real_matrix(base)
        check_square(base, "definite matrices")
        super().__init__(base, rank, **options)
        self.floor = check_number("floor", floor, 1e-30)
        self.root, definite = Root(base), not bool(indefinite(base).any())
        if definite:
            self.root.refresh(base)
        self.tracked = TrackedInverse(base if definite else self.root.factor.detach())

    def sign(self, base: Tensor) -> Tensor:
        return torch.ones_like(self.skips, dtype=base.dtype)

    def merged(self, base: Tensor) -> tuple[Tensor, TrackedUpdate]:
        """L after a merge, and what the merge makes of the base and of all that is tracked."""
        raise NotImplementedError

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """‖A - Aᵀ‖ / 2‖A‖, and 1 - λ/|λ|max where the least eigenvalue λ is not above rounding. O(n³)."""
        return definiteness_defect(tensor)

    def project(self, tensor: Tensor) -> Tensor:
        return with_eigenvalue_floor(tensor, self.floor)

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        self.root.refresh(base)
        self.tracked.refresh(base)

    def _refresh_if_stale(self, base: Tensor) -> None:
        """After a change of dtype, which rounds A and L apart, L follows A for once."""
        if self.tracked.stale:
            self.refresh(base)

    # --- merges -------------------------------------------------------------------------------------------------------

    def propose(self, base: Tensor) -> Proposal:
        self._refresh_if_stale(base)
        tracked, (factor, update) = self.tracked, self.merged(base)
        assert update.base is not None and update.inverse is not None
        vetoes = [veto_residual(update.residual), veto_indefinite(update.base, update.inverse)]
        pairs = [(self.root.factor, factor), (tracked.inverse, update.inverse), (tracked.logabsdet, update.logabsdet)]
        return Proposal(update.base, pairs, vetoes)

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        self._refresh_if_stale(base)
        before = base.clone()
        base.copy_(recomputed_from_factor(base, self.root.factor, None))
        self.tracked.logabsdet.add_(logabsdet_change_by_rounding(before, base, self.tracked.inverse))
        self.tracked.correct(base, ORDER)


class BlockPositiveDefinite(PositiveDefinite, Blocks):
    """Congruences by blocks in gl(b)."""

    algebra = GENERAL_EXPONENTIAL

    def __init__(self, base: Tensor, rank: None = None, **options: Any) -> None:
        check_one_side(options, "acts on the factor")
        super().__init__(base, rank, **options)

    def factor(self, dtype: torch.dtype | None = None) -> Tensor:
        """L E."""
        element = self.element("right", dtype)
        assert element is not None
        return element.right_multiply(self.root.factor.to(element.blocks.dtype))

    def forward(self, base: Tensor) -> Tensor:
        self._refresh_if_stale(base)
        with linalg.full_precision(base.device):
            factor = self.factor()
            return symmetric_from_lower(factor @ factor.mT)

    def affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        return linalg.rows_times(x, self(base), bias)

    def inverse(self, base: Tensor) -> Tensor:
        """Y Yᵀ with Y = A⁻¹ L E⁻ᵀ = L⁻ᵀ E⁻ᵀ."""
        self._refresh_if_stale(base)
        with linalg.full_precision(base.device):
            return self._inverse(self.tracked.inverse, self.root.factor, None)

    def _inverse(self, inverse: Tensor, factor: Tensor, dtype: torch.dtype | None) -> Tensor:
        element = self.element("right", dtype, inverse=True)
        assert element is not None
        y = element.mT.right_multiply(inverse @ factor)
        return symmetric_from_lower(y @ y.mT)

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        return linalg.rows_times(y.to(base.dtype), self.inverse(base))

    def logabsdet(self, base: Tensor) -> Tensor:
        self._refresh_if_stale(base)
        return self.tracked.logabsdet.to(base.dtype) + 2 * self.determinant_change(base)[1]

    @torch.no_grad()
    def merged(self, base: Tensor) -> tuple[Tensor, TrackedUpdate]:
        factor, inverse = self.factor(torch.float64), self.tracked.inverse.double()
        stored = factor.to(base.dtype)
        exact = self._inverse(inverse, self.root.factor.double(), torch.float64)
        logabsdet = 2 * linalg.slogdet(stored.double())[1]  # of L as it is stored
        change, sign = logabsdet - self.tracked.logabsdet, torch.ones_like(logabsdet)
        candidate = symmetric_from_lower(stored.double() @ stored.double().mT)
        turn = self.merge_index
        return stored, self.tracked.update_to(candidate, exact, sign, change, ORDER, turn, base.dtype)


class LowRankPositiveDefinite(PositiveDefinite, LowRank):
    """Congruences by exponentials of rank k. A step costs O(n²k)."""

    relative = True

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        with linalg.full_precision(u.device):
            a = u @ linalg.phi1(v.mT @ u)
            return congruence(linalg.tall_matmul(self.root.factor.to(u.dtype), torch.cat([a, v], -1)), v)

    def inverse_factors(self) -> tuple[Tensor, Tensor]:
        """P, Q with R_B(A)⁻¹ = A⁻¹ + P Qᵀ: L⁻ᵀ E⁻ᵀ E⁻¹ L⁻¹ is a congruence, too, and L⁻ᵀ = A⁻¹ L."""
        u = self.scaled_u
        b = -u @ linalg.phi1(-self.v.mT @ u)
        columns = linalg.tall_matmul(self.root.factor, torch.cat([self.v, b], -1))
        return congruence(linalg.tall_matmul(self.tracked.inverse, columns), b)

    def factors_at(self, base: Tensor) -> tuple[Tensor, Tensor]:
        self._refresh_if_stale(base)
        return super().factors_at(base)

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        self._refresh_if_stale(base)
        with linalg.full_precision(base.device):
            x = fused_linear.affine(y.to(base.dtype), self.tracked.inverse, *self.inverse_factors())
        record_solve(self, base, x, self.tracked.inverse)
        return x

    def inverse(self, base: Tensor) -> Tensor:
        self._refresh_if_stale(base)
        with linalg.full_precision(base.device):
            result = linalg.add_low_rank(self.tracked.inverse, *self.inverse_factors())
        record_inverse(self, base, result, self.tracked.inverse)
        return result

    def logabsdet(self, base: Tensor) -> Tensor:
        self._refresh_if_stale(base)
        return self.tracked.logabsdet.to(base.dtype) + 2 * (self.scaled_u * self.v).sum((-2, -1))

    def pull_back(self, base: Tensor, gradient: LinearOperator) -> LinearOperator:
        """Lᵀ (G + Gᵀ) L."""
        factor = self.root.factor.detach()
        return matrix_operator(factor.mT) @ gradient.symmetric() @ matrix_operator(factor)

    def merged(self, base: Tensor) -> tuple[Tensor, TrackedUpdate]:
        p, q = self.additive_factors(base)
        turn = self.merge_index
        update = self.tracked.propose(base, p, q, ORDER, turn)
        assert update.base is not None and update.inverse is not None
        factor = linalg.add_low_rank(self.root.factor.double(), p[..., : self.rank], self.v.double()).to(base.dtype)
        candidate = recomputed_from_factor(update.base, factor, turn)
        logabsdet = update.logabsdet + logabsdet_change_by_rounding(update.base, candidate, update.inverse)
        return factor, replace(update, base=candidate, logabsdet=logabsdet)


PositiveDefinite.shapes = (BlockPositiveDefinite, LowRankPositiveDefinite)
