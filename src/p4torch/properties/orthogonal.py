"""Orthogonal matrices, and matrices with orthonormal columns or rows (Stiefel): Cayley transforms of low rank."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from p4torch import linalg, rows
from p4torch.directions import of_rows
from p4torch.low_rank import Directions
from p4torch.properties.cayley import cayley, turn
from p4torch.properties.orthonormal import Orthonormal
from p4torch.properties.shapes import check_real_matrix, check_square


class Orthogonal(Orthonormal):
    """S = {A : AᵀA = I}: O(n) for square A `(..., n, n)`, orthonormal columns for tall ones `(..., n, p)`. For wide
    ones `(..., p, n)` orthonormal rows, A Aᵀ = I (Stiefel). U, V `(..., n, k)`, n the long side.

        R_B(A) = Q A  (wide: A Q),   Q = (I - S/2)⁻¹ (I + S/2),   S = U Vᵀ - V Uᵀ

    Q is orthogonal with det Q = 1 for every B, so A stays in its component: SO(n) in SO(n). It is I + P Wᵀ with
    factors `(n, 2k)` (see `cayley`): nothing n x n is formed for n x p. B₀ is U = 0 and V ~ `scale` · N(0, 1); near B₀,
    dQ = dU Vᵀ - V dUᵀ, which has nk - k(k+1)/2 dimensions.

    Tracked: sign det A, constant; A⁻¹ = Aᵀ and log|det A| = 0 need nothing. A step costs O(npk) beside the layer's own
    products, a merge O(npk) and corrections: max(16, p/32) vectors in turn (all of p <= 64) are made orthonormal to all
    others, to first order, O(np) each; and where a probe of AᵀA - I with random signs finds more than rounding, all of
    A is repaired, O(np²), by Newton-Schulz X <- (3X - X XᵀX) / 2 or, from far, by its polar factor. So does `correct`.

    Args:
        base: `(..., n, p)` or `(..., p, n)`. One that is not orthonormal is projected: its polar factor.
        rank: k >= 1. 2nk numbers train.
        scale, directions, train_directions: see `p4torch.low_rank.LowRank`.

    Raises:
        ArgumentError: for a base that is not a real, finite matrix.

    Source: Wen and Yin (2013), a feasible method for optimization with orthogonality constraints, lemma 4, for the
    transform; Higham (2008), Functions of Matrices, section 8.3, for Newton-Schulz.
    """

    skew: ClassVar[bool] = True
    orientation: Tensor

    def __init__(
        self,
        base: Tensor,
        rank: int = 1,
        *,
        scale: float = 1.0,
        directions: Directions = "random",
        train_directions: bool = True,
    ) -> None:
        check_real_matrix(base)
        super().__init__(
            base,
            rank,
            scale=scale,
            directions=directions,
            train_directions=train_directions,
            side="right" if base.shape[-2] < base.shape[-1] else "left",
        )
        self.register_buffer("orientation", base.new_ones(base.shape[:-2]))  # ±1: exact in every dtype
        self.refresh(base)

    # --- R_B and what follows from it ---------------------------------------------------------------------------------

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return cayley(u, v)

    def _affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.side == "left" and rows.dense_is_cheaper(x, base, 2 * self.rank):
            return turn(x, base, self.u, self.v, bias)
        return super()._affine(base, x, bias)

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        """y R_B(A)⁻ᵀ = y R_B(A)."""
        check_square(base, "an inverse")
        with linalg.full_precision(base.device):
            (p, q), y = self.factors(self.u, self.v), y.to(base.dtype)
            if rows.dense_is_cheaper(y, base, q.shape[-1]):
                x = linalg.rows_times(y, self.moved(base, p, q).mT)
            else:
                x = linalg.rows_times(rows.shift(y, q, p), base.mT)
        if self.sketch is not None:  # ∂L/∂R = yᵀ g
            self.sketch.see(x, lambda g: self.acting(base, of_rows(y.detach(), g, base.dim() > 2)))
        return x

    def inverse(self, base: Tensor) -> Tensor:
        check_square(base, "an inverse")
        with linalg.full_precision(base.device):
            return self(base).mT

    def logabsdet(self, base: Tensor) -> Tensor:
        """0, whatever B is."""
        check_square(base, "a determinant")
        return base.new_zeros(base.shape[:-2])

    def sign(self, base: Tensor) -> Tensor:
        check_square(base, "a determinant")
        return self.orientation

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        if base.shape[-2] == base.shape[-1]:
            self.orientation.copy_(linalg.one_by_one(torch.linalg.slogdet, linalg.at_least_single(base))[0])
