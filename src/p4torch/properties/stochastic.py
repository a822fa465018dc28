"""Stochastic matrices: rows on the simplex; rows and columns, for doubly stochastic ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from p4torch import linalg
from p4torch._options import check_integer, check_number
from p4torch.core.directions import matrix_operator
from p4torch.core.low_rank import LowRank, LowRankOptions
from p4torch.core.transaction import Proposal
from p4torch.errors import ArgumentError
from p4torch.properties._math.shapes import check_real_matrix, check_square
from p4torch.properties._math.simplex import (
    doubly_normalized,
    multiplicative_update,
    projected_onto_simplex,
    simplex_defect,
)
from p4torch.properties._math.zeros import rounded_positive, warn_of_clipped_entries, warn_of_untrained_zeros

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Stochastic(LowRank):
    """S = {A `(..., n, m)` : A >= 0, rows sum to 1}; `doubly`: columns, too (`(..., n, n)`, the Birkhoff polytope).

        R_B(A) = N(A ⊙ exp(g U Vᵀ)),   B₀: U = 0, V ~ N(0, 1)

    U `(..., n, k)`, V `(..., m, k)`. N divides rows by their sums: R_B(A) = softmax(log A + U Vᵀ). If `doubly`,
    N is up to `sweeps` sweeps of Sinkhorn, in every step: rows sum to 1, columns up to about |U Vᵀ| σ₂^(2 `sweeps`), σ₂
    the second singular value of A. So a merge, which goes on until both do, leaves the weight as it was, and the
    gradient, that of the limit, is right. Close to a permutation matrix (σ₂ near 1) this takes more sweeps; a merge
    makes 100, and spreads over all entries what is left.

    Near B₀ each row moves along A_i ⊙ (V - Σ_j A_ij V_j): nk directions, up to n(m - 1); if doubly, k(n - 1), up to
    (n - 1)², for U that is equal in all rows only scales columns. An entry that is 0 stays 0 for ever: a permutation
    matrix does not move at all. See `floor`. Positive entries stay positive, through merges too.

    Nothing is tracked. A step forms R_B(A) and its gradient, O(nmk) and some passes over nm entries more than a plain
    layer (`sweeps` times four, if doubly, through vectors): the perturbation keeps the optimizer's memory small, not
    the time. Merges are exact, in float64; they make rows, and columns, sum to 1 again: nothing is left to correct.

    Args:
        base: `(..., n, m)`. Projected by cutting negative entries off and dividing rows by their sums, or by Sinkhorn.
        doubly: whether columns sum to 1, too.
        rank: k, 1 <= k <= m; None for 1, or 2 if doubly. (n + m)k numbers train.
        floor: 0 <= floor < 1. A tensor that is admitted with smaller entries than `floor`/m is mixed with 1/m so much
            that its least entry (of each row, or of the matrix, if doubly) is that. 0 says that zeros are meant; by
            default they stay, too, with a `PropertyWarning`.
        sweeps: of Sinkhorn in each step, at most; on a CPU fewer where they settle before.
        scale, directions, train_directions: see `p4torch.core.low_rank.LowRank`.

    Raises:
        ArgumentError: for a base that is not a real, finite matrix, or not square if doubly; for one with a row that
            has no positive entry, or whose negative entries cancel the positive ones (if doubly: or a column); for
            options out of range.

    Source: Sinkhorn and Knopp (1967); Kivinen and Warmuth (1997), exponentiated gradient, for steps that multiply.
    """

    def __init__(
        self,
        base: Tensor,
        doubly: bool = False,
        rank: int | None = None,
        *,
        floor: float | None = None,
        sweeps: int = 32,
        **options: Unpack[LowRankOptions],
    ) -> None:
        check_real_matrix(base)
        rank = (min(2, base.shape[-1]) if doubly else 1) if rank is None else rank
        super().__init__(base, rank, side="add", **options)
        if doubly:
            check_square(base, "doubly stochastic rows and columns")
        floor_given, floor = floor is not None, check_number("floor", 0.0 if floor is None else floor, 0.0)
        if floor >= 1:
            raise ArgumentError.of("floor", "less than 1", floor)
        self.doubly, self.floor, self.floor_given = doubly, floor, floor_given
        self.sweeps = check_integer("sweeps", sweeps, 1)

    def natural_gain(self, base: Tensor) -> Tensor:
        """k^(-1/2): U Vᵀ changes the logarithms of entries, and a step at the rate η moves them by about η."""
        return self.rank**-0.5 * torch.ones_like(self.skips)

    # --- R_B ----------------------------------------------------------------------------------------------------------

    def apply_factors(self, base: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return multiplicative_update(base, p, q, self.sweeps if self.doubly else 0)

    def forward(self, base: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            matrix = self.apply_factors(base, self.scaled_u, self.v)
        if self.sketch is not None:  # near B₀, ∂L/∂(U Vᵀ) = A ⊙ (G - Σ_j A_ij G_ij); so, too, if doubly, up to columns
            w = matrix.detach()
            self.sketch.record(matrix, lambda g: matrix_operator(w * (g - (w * g).sum(-1, keepdim=True))))
        return matrix

    def affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        return linalg.rows_times(x, self(base), bias)

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """The largest of |row sum - 1|, what is negative and, if doubly, |column sum - 1|."""
        return simplex_defect(tensor, self.doubly)

    def project(self, tensor: Tensor) -> Tensor:
        result = projected_onto_simplex(tensor, self.floor, self.doubly)
        if self.floor == 0 and bool((tensor < 0).any()):
            warn_of_clipped_entries(tensor < 0, self.tensor_name)
        return rounded_positive(result, tensor.dtype)

    @torch.no_grad()
    def right_inverse(self, tensor: Tensor) -> Tensor:
        base = rounded_positive(
            projected_onto_simplex(super().right_inverse(tensor), self.floor, self.doubly), tensor.dtype
        )
        if not self.floor_given:
            warn_of_untrained_zeros(tensor, self.tensor_name, rows=True)
        return base

    # --- merges -------------------------------------------------------------------------------------------------------

    def propose(self, base: Tensor) -> Proposal:
        exact = self.apply_factors(base.double(), self.scaled_u.double(), self.v.double())
        if self.doubly:
            exact = doubly_normalized(exact, torch.finfo(base.dtype).eps)
        return Proposal(rounded_positive(exact, base.dtype))

    def extra_repr(self) -> str:
        return f"doubly={self.doubly}, {super().extra_repr()}"
