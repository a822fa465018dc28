"""Matrices of bounded spectral norm: Lipschitz layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from p4torch import linalg
from p4torch._options import check_choice, check_number
from p4torch.core.low_rank import LowRankOptions
from p4torch.core.transaction import Proposal
from p4torch.errors import ArgumentError
from p4torch.properties._math.additive import Additive
from p4torch.properties._math.certificate import Certificate
from p4torch.properties._math.norms import SLACK, norm_bound, rounding_share
from p4torch.properties._math.schatten import norm_above, norm_above_sum
from p4torch.properties._math.shapes import check_real_matrix

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Up to this short side the defect comes from singular values, each step sees the norm of all of A + B, and B is a
#: whole matrix by default; beyond, norms are sums of certified bounds, and B is of this rank by default.
DENSE_SIZE, DEFAULT_RANK = 256, 8


class SpectralBound(Additive):
    """S = {A `(..., n, m)` : ‖A‖₂ <= c}, at every step:

        R_B(A) = min(1, c / s) M,   M = A + B,   s >= ‖M‖₂ certified,   B₀ = 0

    B is a whole matrix `(..., n, m)` for a short side p of at most 256, else U Vᵀ of rank 8 with U `(..., n, k)`, V
    `(..., m, k)`, see `rank`. A step that would leave S is scaled back onto it, and the gradient knows: it passes
    through s. A merge puts the scaled matrix into the base and leaves the effective weight unchanged, to the bit.

    For p <= 256, or a whole B, s is a Schatten norm of order 8194 of M, at most 0.07 % above the norm at p = 256:
    O(np² + 12p³) a step, see `p4torch.properties._math.schatten`. Otherwise s² = ‖A‖² + λ with λ a bound of the largest
    eigenvalue of M Mᵀ - A Aᵀ, O(nmk) a step; it takes each singular value of A for ‖A‖ and may be far above the norm,
    so that such a layer learns slower at the bound.

    With `at="merge"` a step costs nothing: R_B(A) = A + B, which may leave S between merges (by as much as B is long).
    A merge then leads back by `method`, and so changes the effective weight where it was outside.

    Args:
        base: `(..., n, m)`.
        bound: c > 0; None for the (certified) norm of each given matrix, which keeps it.
        rank: k, 1 <= k <= m, for B = U Vᵀ; "whole" for B `(..., n, m)`, whose norm is seen at each step; None to
            choose by size.
        at: "step" or "merge": where the bound holds.
        scale, directions, train_directions: for B = U Vᵀ, see `p4torch.core.low_rank.LowRank`.
        method: how a matrix outside of S is brought back, at admission and by merges of `at="merge"`: "clip" cuts
            singular values to just below c, "scale" divides by the norm.

    Raises:
        ArgumentError: for a base that is not a real, finite matrix; for options out of range.

    Source: Gouk, Frank, Pfahringer and Cree (2021) for scaling; Miyato, Kataoka, Koyama and Yoshida (2018) for the
    gradient through the norm; Delattre et al. (2023) for powers of the Gram matrix.
    """

    def __init__(
        self,
        base: Tensor,
        bound: float | None = None,
        rank: int | Literal["whole"] | None = None,
        *,
        at: Literal["step", "merge"] = "step",
        method: Literal["clip", "scale"] = "clip",
        **options: Unpack[LowRankOptions],
    ) -> None:
        check_real_matrix(base)
        small = min(base.shape[-2:]) <= DENSE_SIZE
        if rank is None:
            rank = "whole" if small else DEFAULT_RANK
        super().__init__(base, None if rank == "whole" else rank, **options)
        self.dense = small or self.full
        check_choice("at", at, ("step", "merge"), "one of step, merge")
        check_choice("method", method, ("clip", "scale"), "one of clip, scale")
        if bound is not None:
            bound = check_number("bound", bound, 1e-30)
        elif not bool(base.any(-1).any(-1).all()):
            raise ArgumentError.of("bound", "a number for a base with a matrix of zeros", "None")
        self.at, self.method, self.bound = at, method, bound
        norms = norm_bound(base.detach())
        self.certificate = Certificate(base, norms if bound is None else torch.full_like(norms, bound))
        self.refresh(base)

    # --- every step ---------------------------------------------------------------------------------------------------

    def forward(self, base: Tensor) -> Tensor:
        updated = self.base_plus_b(base)
        if self.at == "merge":
            return updated
        return updated * self._scaling(base, self._norm(base, updated))[..., None, None]

    def affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.dense and (self.full or self.at == "step"):
            return linalg.rows_times(x, self(base), bias)
        if self.at == "merge":
            return super().affine(base, x, bias)
        y = super().affine(base, x, None) * self._scaling(base, self._norm(base))[..., None, None]
        return y if bias is None else y + bias.to(y.dtype)

    def norm(self, base: Tensor) -> Tensor:
        """A certified upper bound of ‖R_B(A)‖₂ `(...)`, in float64."""
        norm = self._norm(base, self.base_plus_b(base))
        return norm if self.at == "merge" else torch.minimum(norm, self.certificate.bound)

    def norm_of(self, tensor: Tensor) -> Tensor:
        """A certified upper bound of ‖A‖₂ of any matrix `(...)`, in float64."""
        return norm_bound(tensor.detach())

    def rounding(self, tensor: Tensor) -> float:
        """By which share of itself rounding the entries may change ‖A‖₂, twice."""
        return rounding_share(tensor)

    def _norm(self, base: Tensor, updated: Tensor | None = None) -> Tensor:
        """s >= ‖M‖₂ `(...)` of M as it is rounded; a small one is given as `updated`.

        Near B₀ it is ‖A‖ + 2‖B‖_F, which has no gradient: rounding A + B changes no entry by more than that of B.
        Otherwise, what is scaled by it is below c by so much that `norm_bound`, too, certifies it.
        """
        known = self.certificate.norm
        if self.dense and updated is not None:
            norm = norm_above(updated) * (1 + 2 * SLACK)
        else:
            norm = norm_above_sum(base, self.scaled_u, self.v, known) * (1 + rounding_share(base))
        return torch.minimum(norm, known + 2 * self.frobenius_norm_of_b())

    def _scaling(self, base: Tensor, norm: Tensor) -> Tensor:
        """min(1, c / s) in the dtype of the base; below that by what rounding R_B(A) may add."""
        bound = self.certificate.bound
        inside = bound / (torch.maximum(norm, bound) * (1 + rounding_share(base)))
        return torch.where(norm <= bound, 1.0, inside).to(base.dtype)

    # --- merges -------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """max(0, ‖A‖₂ / c - 1); for large matrices from the certified bound."""
        bound = self.certificate.bound
        if min(tensor.shape[-2:]) <= DENSE_SIZE:
            norm = torch.linalg.matrix_norm(tensor.detach().double(), ord=2)
        else:
            norm = norm_bound(tensor.detach(), bound)
        return (norm / bound - 1).clamp_min(0)

    def project(self, tensor: Tensor) -> Tensor:
        return self.inside(tensor.double(), tensor.dtype, self.certificate.bound + torch.inf)[0]

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        self.certificate.norm.copy_(norm_bound(base))

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        if bool((self.certificate.norm > self.certificate.bound).any()):
            inside, norm = self.inside(base.double(), base.dtype, self.certificate.bound + torch.inf)
            base.copy_(inside)
            self.certificate.norm.copy_(norm)

    def loose(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """A + B in float64, and an upper bound `(...)` of its norm once it is rounded, without any certification."""
        exact, norm = self.sum_in_double(base), self.norm_of_b(base)
        rounding = torch.linalg.matrix_norm(exact.to(base.dtype).double() - exact)
        rounding = rounding + rounding_share(exact) * (torch.linalg.matrix_norm(exact) + norm)
        return exact, self.certificate.norm + norm + rounding

    def propose(self, base: Tensor) -> Proposal:
        if self.at == "step":
            candidate, norm = self.scaled(base)
        else:
            exact, known = self.loose(base)
            candidate, norm = self.inside(exact, base.dtype, known)
        return Proposal(candidate, self.tracked(candidate, norm))

    def tracked(self, candidate: Tensor, norm: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What becomes of what is tracked when a candidate of that norm is merged."""
        return [(self.certificate.norm, norm)]

    def scaled(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """R_B(A) of `at="step"`, and a certified bound of its norm: s, or c where it was scaled. That of a large
        matrix, which s may exceed by much, is computed again then, in O(np²)."""
        updated = self.base_plus_b(base)
        norm, bound = self._norm(base, updated), self.certificate.bound
        candidate = updated * self._scaling(base, norm)[..., None, None]
        if not self.dense and bool((norm > bound).any()):
            norm = torch.minimum(norm, norm_bound(candidate))
        return candidate, torch.minimum(norm, bound)

    def inside(
        self, exact: Tensor, dtype: torch.dtype, known: Tensor, bound: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Certificate.bring_inside`."""
        return self.certificate.bring_inside(exact, dtype, known, self.method == "clip", bound)

    def identity(self) -> str:
        """Without `method`, of projections; a bound that was not given is that of the admitted base, which a state
        brings along."""
        bound = "" if self.bound is None else f", bound={self.bound:g}"
        return f"SpectralBound({super().extra_repr()}, at={self.at!r}{bound})"

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, at={self.at!r}, method={self.method!r}"
