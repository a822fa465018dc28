"""Orthogonal matrices, and matrices with orthonormal columns or rows (Stiefel), by Cayley transforms."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.blocks import Blocks
from p4torch.core.directions import outer_operator
from p4torch.core.low_rank import LowRank
from p4torch.linalg import fused_linear
from p4torch.linalg.matrix_groups import ORTHOGONAL
from p4torch.properties._math.cayley import cayley, cayley_affine
from p4torch.properties._math.orthonormal import Orthonormal
from p4torch.properties._math.shapes import check_real_matrix, check_square


class Orthogonal(Orthonormal):
    """S = {A : AᵀA = I}: O(n) for square A `(..., n, n)`, orthonormal columns for tall ones `(..., n, p)`. For wide
    ones `(..., p, n)` orthonormal rows, A Aᵀ = I (Stiefel). n is the long side, on which a rotation Q acts:

        R_B(A) = A Q  (tall: Q A),   Q = (I - X/2)⁻¹ (I + X/2),   X skew
        blocks:    X = P blockdiag(g (B_i - B_iᵀ) / 2) Pᵀ
        low rank:  X = g (U Vᵀ - V Uᵀ),   U, V `(..., n, k)`

    Q is orthogonal with det Q = 1 for every B, so A stays in its component: SO(n) in SO(n). Nothing n x n is formed for
    n x p. B₀ is B = 0 in m b(b-1)/2 dimensions, or U = 0 and V ~ N(0, 1), where dQ = g (dU Vᵀ - V dUᵀ) has
    nk - k(k+1)/2. With k, Q is I + P Wᵀ with factors `(n, 2k)` (see `cayley`).

    Tracked: sign det A, constant; A⁻¹ = Aᵀ and log|det A| = 0 need nothing. A step costs O(npk), or O(npb), beside the
    layer's own products. At merges max(16, p/32) vectors in turn (all of p <= 64) are made orthonormal to all others,
    to first order, O(np) each; and where a probe of AᵀA - I with random signs finds more than rounding, all of A is
    repaired, O(np²), by Newton-Schulz X <- (3X - X XᵀX) / 2 or, from far, by its polar factor. So does `correct`.

    Args:
        base: `(..., n, p)` or `(..., p, n)`. One that is not orthonormal is projected: its polar factor.
        rank, block, side, scale, directions, train_directions: see `p4torch.core.shaped.Shaped`.

    Raises:
        ArgumentError: for a base that is not a real, finite matrix; for options out of range.

    Source: Wen and Yin (2013), a feasible method for optimization with orthogonality constraints, lemma 4, for the
    transform; Qiu et al. (2025), POET, for random blocks; Higham (2008), Functions of Matrices, section 8.3, for
    Newton-Schulz.
    """

    orientation: Tensor

    def __init__(self, base: Tensor, rank: int | None = None, **options: Any) -> None:
        check_real_matrix(base, "Unitary is the complex one")
        super().__init__(base, rank, **options)
        self.register_buffer("orientation", base.new_ones(base.shape[:-2]))  # ±1: exact in every dtype
        self.refresh(base)

    def sign(self, base: Tensor) -> Tensor:
        check_square(base, "a determinant")
        return self.orientation

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        if base.shape[-2] == base.shape[-1]:
            self.orientation.copy_(linalg.unbatched(torch.linalg.slogdet, linalg.at_least_single(base))[0])


class BlockOrthogonal(Orthogonal, Blocks):
    """Blocks in so(b)."""

    algebra = ORTHOGONAL


class LowRankOrthogonal(Orthogonal, LowRank):
    """Skew matrices of rank 2k."""

    skew: ClassVar[bool] = True

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return cayley(u, v)

    def _affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.side == "left" and fused_linear.dense_is_cheaper(x, base, 2 * self.rank):
            return cayley_affine(x, base, self.scaled_u, self.v, bias)
        return super()._affine(base, x, bias)

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        """y R_B(A)⁻ᵀ = y R_B(A)."""
        check_square(base, "an inverse")
        with linalg.full_precision(base.device):
            (p, q), y = self.factors(self.scaled_u, self.v), y.to(base.dtype)
            if fused_linear.dense_is_cheaper(y, base, q.shape[-1]):
                x = linalg.rows_times(y, self.apply_factors(base, p, q).mT)
            else:
                x = linalg.rows_times(fused_linear.identity_plus_low_rank(y, q, p), base.mT)
        if self.sketch is not None:  # ∂L/∂R = yᵀ g
            self.sketch.record(x, lambda g: self.pull_back(base, outer_operator(y.detach(), g, base.dim() > 2)))
        return x


Orthogonal.shapes = (BlockOrthogonal, LowRankOrthogonal)
