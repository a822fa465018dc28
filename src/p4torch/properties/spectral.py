"""Matrices of bounded spectral norm: Lipschitz layers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.errors import ArgumentError
from p4torch.low_rank import Directions, LowRank
from p4torch.merging import Proposal
from p4torch.options import check_choice
from p4torch.properties.certificate import Certificate
from p4torch.properties.checks import check_number
from p4torch.properties.norms import norm_bound, norm_of_low_rank, rounding_share
from p4torch.properties.shapes import check_real_matrix

#: Up to this short side, the defect comes from singular values; beyond, from the certified bound.
DENSE = 256


class SpectralBound(LowRank):
    """S = {A `(..., n, m)` : ‖A‖₂ <= c}; U `(..., n, k)`, V `(..., m, k)`.

        R_B(A) = A + U Vᵀ,   B₀: U = 0, V ~ `scale` · N(0, 1)

    R_B(A) may leave S between merges. A merge that stays in S leaves the effective weight unchanged; another one leads
    back: "clip" cuts singular values to just below c (few: at most k exceed c at once), "scale" divides by the norm.

    Tracked: a certified upper bound s >= ‖A‖₂. A merge costs O(nmk) while s + ‖U Vᵀ‖₂ <= c, which becomes the new s;
    otherwise a Gram iteration certifies the candidate, O(np²) and some p³, p the short side (power iteration gives
    lower bounds only, and certifies nothing), which takes many times as long. A cut, by all singular vectors, is as
    much again; it is certified, too, and what may be left is scaled away.

    Args:
        base: `(..., n, m)`.
        bound: c > 0; None for the (certified) norm of each given matrix, which keeps it.
        rank: k >= 1.
        scale, directions, train_directions: see `p4torch.low_rank.LowRank`.
        method: "clip" or "scale".

    Raises:
        ArgumentError: for a base that is not a real, finite matrix; for options out of range.

    Source: Gouk, Frank, Pfahringer and Cree (2021) for scaling; Delattre et al. (2023) for Gram iteration.
    """

    def __init__(
        self,
        base: Tensor,
        bound: float | None = None,
        rank: int = 1,
        *,
        scale: float = 1.0,
        directions: Directions = "random",
        train_directions: bool = True,
        method: Literal["clip", "scale"] = "clip",
    ) -> None:
        check_real_matrix(base)
        super().__init__(base, rank, scale=scale, directions=directions, train_directions=train_directions, side="add")
        check_choice("method", method, ("clip", "scale"), "one of clip, scale")
        if bound is not None:
            bound = check_number("bound", bound, 1e-30)
        elif not bool(base.any(-1).any(-1).all()):
            raise ArgumentError.of("bound", "a number for a base with a matrix of zeros", "None")
        self.method = method
        norms = norm_bound(base.detach())
        self.certificate = Certificate(base, norms if bound is None else torch.full_like(norms, bound))
        self.refresh(base)

    def defect(self, tensor: Tensor) -> Tensor:
        """max(0, ‖A‖₂ / c - 1); for large matrices from the certified bound."""
        bound = self.certificate.bound
        if min(tensor.shape[-2:]) <= DENSE:
            norm = torch.linalg.matrix_norm(tensor.detach().double(), ord=2)
        else:
            norm = norm_bound(tensor.detach(), bound)
        return (norm / bound - 1).clamp_min(0)

    def project(self, tensor: Tensor) -> Tensor:
        return self._inside(tensor.double(), tensor.dtype, self.certificate.bound + torch.inf)[0]

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        self.certificate.norm.copy_(norm_bound(base))

    def right_inverse(self, tensor: Tensor) -> Tensor:
        admitted: Tensor = super().right_inverse(tensor)
        self.correct(admitted)  # what is above the bound by little
        return admitted

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        if bool((self.certificate.norm > self.certificate.bound).any()):
            inside, norm = self._inside(base.double(), base.dtype, self.certificate.bound + torch.inf)
            base.copy_(inside)
            self.certificate.norm.copy_(norm)

    def loose(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """R_B(A) in float64, and an upper bound `(...)` of its norm once it is rounded, without any certification."""
        u, v = self.additive_factors(base)
        exact = linalg.add_low_rank(base.double(), u, v)
        rounding = torch.linalg.matrix_norm(exact.to(base.dtype).double() - exact)
        rounding = rounding + rounding_share(exact) * (torch.linalg.matrix_norm(exact) + norm_of_low_rank(u, v))
        return exact, self.certificate.norm + norm_of_low_rank(u, v) + rounding

    def propose(self, base: Tensor) -> Proposal:
        exact, known = self.loose(base)
        rounded, norm = self._inside(exact, base.dtype, known)
        return Proposal(rounded, [(self.certificate.norm, norm)])

    def _inside(self, exact: Tensor, dtype: torch.dtype, known: Tensor) -> tuple[Tensor, Tensor]:
        return self.certificate.bring_inside(exact, dtype, known, self.method == "clip")

    def extra_repr(self) -> str:
        return f"rank={self.rank}, method={self.method!r}, scale={self.scale:g}"
