"""Volume-preserving matrices: determinant 1, kept by shears."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg, rows
from p4torch.directions import of_matrix, of_rows
from p4torch.errors import ArgumentError
from p4torch.low_rank import Directions, LowRank
from p4torch.merging import Proposal, Veto
from p4torch.properties.checks import RESIDUAL_BOUND, check_nonsingular
from p4torch.properties.volume import rescaled, unit_volume
from p4torch.tracking import TrackedInverse

#: Of the iterative inversion that corrects the inverse.
ORDER = 7


class UnitDeterminant(LowRank):
    """S = SL(n) = {A : det A = 1}, with A⁻¹ tracked; U, V `(..., n, k)`, k < n.

        R_B(A) = A (I + U' Vᵀ),   U' = U - V (VᵀV)⁻¹ VᵀU,   so that VᵀU' = 0

    A product of k shears: (U' Vᵀ)² = 0, hence I + U' Vᵀ = exp(U' Vᵀ), det R_B(A) = det A exactly and
    R_B(A)⁻¹ = (I - U' Vᵀ) A⁻¹, whatever B is. These are the exponentials exp(U Vᵀ) with tr(VᵀU) = 0 that need no matrix
    exponential: a part of them which is closed under merges. B₀ is U = 0 and V ~ `scale` · N(0, 1), where B moves A in
    k(n - k) directions.

    Tracked: A⁻¹, and log|det A| as rounding leaves it; log|det| = 0 and sign = 1 are constants. A step costs O(n²k), a
    merge O(n²k): it updates the inverse by the Woodbury identity, and scales A by det(A)^(-1/n) where log|det A| has
    drifted by more than rounding. `correct` makes a step of the iterative inversion, O(n³).

    Args:
        base: `(..., n, n)`, n >= 2, of positive determinant; scaled to determinant 1 if it has another one.
        rank: k, 1 <= k < n. 2nk numbers train.
        scale, directions, train_directions: see `p4torch.low_rank.LowRank`.

    Raises:
        ArgumentError: for a base that is not square, real, finite and nonsingular, or with det < 0: no small change
            leads from there to SL(n); exchange two rows, or change the sign of one.

    Source: Hall (2015), Lie Groups, Lie Algebras, and Representations, section 2, for SL(n) and nilpotent exponentials.
    """

    def __init__(
        self,
        base: Tensor,
        rank: int = 1,
        *,
        scale: float = 1.0,
        directions: Directions = "random",
        train_directions: bool = True,
    ) -> None:
        super().__init__(
            base, rank, scale=scale, directions=directions, train_directions=train_directions, side="right"
        )
        check_nonsingular(base)
        if rank >= base.shape[-1]:
            raise ArgumentError.of("rank", f"less than n = {base.shape[-1]}", rank)
        self.tracked = TrackedInverse(base)

    # --- R_B and what follows from it, O(n²k) -----------------------------------------------------------------------

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        with linalg.full_precision(u.device):
            return u - v @ linalg.solve(v.mT @ v, v.mT @ u), v

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            p, q = self.factors(self.u, self.v)
            inverse = self.tracked.current(base).inverse
            x = rows.shift(linalg.rows_times(y.to(base.dtype), inverse), -p, q)
        if self.sketch is not None:  # ∂L/∂R = -R⁻ᵀ gᵀ x; R⁻¹ is close to A⁻¹ at the end of an interval, too
            back = of_matrix(inverse.mT)
            self.sketch.see(x, lambda g: self.acting(base, back @ of_rows(-g, x.detach(), base.dim() > 2)))
        return x

    def inverse(self, base: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            inverse = self.tracked.current(base).inverse
            p, q = self.factors(self.u, self.v)
            found = linalg.add_low_rank(inverse, -p, linalg.thin(inverse.mT, q))
        if self.sketch is not None:  # ∂L/∂R = -R⁻ᵀ g R⁻ᵀ
            back = of_matrix(inverse.mT)
            self.sketch.see(found, lambda g: self.acting(base, back @ of_matrix(-g) @ back))
        return found

    def logabsdet(self, base: Tensor) -> Tensor:
        """0, whatever B is."""
        return base.new_zeros(base.shape[:-2])

    def sign(self, base: Tensor) -> Tensor:
        return torch.ones_like(self.skips, dtype=base.dtype)

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """|log det A|; infinite for det A <= 0."""
        sign, logabsdet = linalg.one_by_one(torch.linalg.slogdet, tensor.detach().double())
        return torch.where(sign > 0, logabsdet.abs(), torch.inf)

    def project(self, tensor: Tensor) -> Tensor:
        """det(A)^(-1/n) A. Raises ArgumentError for det A <= 0."""
        check_nonsingular(tensor, "tensor")
        return unit_volume(tensor)

    def refresh(self, base: Tensor) -> None:
        self.tracked.refresh(base)

    def right_inverse(self, tensor: Tensor) -> Tensor:
        admitted: Tensor = super().right_inverse(tensor)
        self.correct(admitted)  # what is nearly in S gets the precision of its dtype
        return admitted

    # --- merges -------------------------------------------------------------------------------------------------------

    def propose(self, base: Tensor) -> Proposal:
        tracked = self.tracked.current(base)
        update = tracked.propose(base, *self.additive_factors(base), ORDER, int(self.attempts))
        assert update.base is not None and update.inverse is not None
        candidate, inverse, logabsdet = rescaled(update.base, update.inverse, update.logabsdet, base.dtype)
        vetoes = [
            Veto(
                f"the inverse's residual is above {RESIDUAL_BOUND:g}: A is too badly conditioned for its dtype",
                ~(tracked.residual(candidate, inverse.to(base.dtype)) <= RESIDUAL_BOUND),
            )
        ]
        return Proposal(candidate, [(tracked.inverse, inverse), (tracked.logabsdet, logabsdet)], vetoes)

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        tracked = self.tracked.current(base)
        tracked.correct(base, ORDER)
        parts = rescaled(base.double(), tracked.inverse.double(), tracked.logabsdet, base.dtype)
        for tensor, value in zip((base, tracked.inverse, tracked.logabsdet), parts, strict=True):
            tensor.copy_(value)
