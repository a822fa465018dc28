"""Volume-preserving matrices: determinant 1, by triangular factors or shears."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.blocks import Blocks
from p4torch.core.low_rank import LowRank, Side
from p4torch.core.shaped import Shaped
from p4torch.core.transaction import Proposal
from p4torch.errors import ArgumentError
from p4torch.linalg import fused_linear
from p4torch.linalg.matrix_groups import UNIT_DETERMINANT
from p4torch.linalg.tracked_inverse import TrackedInverse, TrackedUpdate
from p4torch.properties._math.checks import ORDER, check_nonsingular, check_real_square, veto_residual
from p4torch.properties._math.inverse_gradients import record_inverse, record_solve
from p4torch.properties._math.tracked_blocks import tracked_block_update
from p4torch.properties._math.volume import rescaled_to_unit_determinant, unit_volume


class UnitDeterminant(Shaped):
    """S = SL(n) = {A : det A = 1}, with A⁻¹ tracked.

        blocks:    R_B(A) = A P blockdiag((I + L_i) (U_i + exp D_i)) Pᵀ,  L_i + D_i + U_i = g (B_i - tr(B_i)/b I)
        low rank:  R_B(A) = A (I + g U' Vᵀ),  U' = U - V (VᵀV)⁻¹ VᵀU,  so that VᵀU' = 0;  U, V `(..., n, k)`, k < n

    with the strictly lower, diagonal and strictly upper parts L_i, D_i, U_i; exp(tr D_i) = 1.
    Either has determinant 1 times det A, exactly, whatever B is. The second is a product of k shears: (U' Vᵀ)² = 0,
    hence I + U' Vᵀ = exp(U' Vᵀ) and R_B(A)⁻¹ = (I - g U' Vᵀ) A⁻¹ without a matrix exponential. B₀ is B = 0, where B
    moves A in m (b² - 1) directions, or U = 0 and V ~ N(0, 1), where it does in k(n - k).

    Tracked: A⁻¹, and log|det A| as rounding leaves it; log|det| = 0 and sign = 1 are constants. A step costs O(n²k) or
    O(n²b), and so does a merge, which updates the inverse and scales A by det(A)^(-1/n) where log|det A| has drifted by
    more than rounding. `correct` makes a step of the iterative inversion, O(n³).

    Args:
        base: `(..., n, n)`, n >= 2, of positive determinant; scaled to determinant 1 if it has another one.
        rank, block, side, scale, directions, train_directions: see `p4torch.core.shaped.Shaped`; 1 <= k < n, 2 <= b.

    Raises:
        ArgumentError: for a base that is not square, real, finite and nonsingular, or with det < 0: no small change
            leads from there to SL(n); exchange two rows, or change the sign of one.

    Source: Hall (2015), Lie Groups, Lie Algebras, and Representations, section 2, for SL(n) and nilpotent exponentials.
    """

    def __init__(self, base: Tensor, rank: int | None = None, **options: Any) -> None:
        super().__init__(base, rank, **options)
        check_real_square(base)
        self.tracked = TrackedInverse(base)
        check_nonsingular(base, inverse=self.tracked.inverse)
        if rank is not None and rank >= base.shape[-1]:
            raise ArgumentError.of("rank", f"less than n = {base.shape[-1]}", rank)
        if rank is None and base.shape[-1] < 2:
            raise ArgumentError.of("base", "of size 2 at least", tuple(base.shape))

    def factors_act(self, base: Tensor) -> Side:
        return "right"

    def tracked_update(self, base: Tensor) -> TrackedUpdate:
        """What a merge makes of the base and of all that is tracked."""
        raise NotImplementedError

    # --- inverse and determinant --------------------------------------------------------------------------------------

    def base_inverse(self, base: Tensor) -> Tensor:
        return self.tracked.current(base).inverse

    def logabsdet(self, base: Tensor) -> Tensor:
        """0, whatever B is."""
        return base.new_zeros(base.shape[:-2])

    def sign(self, base: Tensor) -> Tensor:
        return torch.ones_like(self.skips, dtype=base.dtype)

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """|log det A|; infinite for det A <= 0."""
        sign, logabsdet = linalg.unbatched(torch.linalg.slogdet, tensor.detach().double())
        return torch.where(sign > 0, logabsdet.abs(), torch.inf)

    def project(self, tensor: Tensor) -> Tensor:
        """det(A)^(-1/n) A. Raises ArgumentError for det A <= 0."""
        check_nonsingular(tensor, "tensor", self.tracked.inverse)
        return unit_volume(tensor)

    def refresh(self, base: Tensor) -> None:
        self.tracked.refresh(base)

    # --- merges -------------------------------------------------------------------------------------------------------

    def propose(self, base: Tensor) -> Proposal:
        tracked, update = self.tracked.current(base), self.tracked_update(base)
        assert update.base is not None and update.inverse is not None
        candidate, inverse, logabsdet = rescaled_to_unit_determinant(
            update.base, update.inverse, update.logabsdet, base.dtype
        )
        veto = veto_residual(tracked.residual(candidate, inverse.to(base.dtype)))
        return Proposal(candidate, [(tracked.inverse, inverse), (tracked.logabsdet, logabsdet)], [veto])

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        tracked = self.tracked.current(base)
        tracked.correct(base, ORDER)
        parts = rescaled_to_unit_determinant(base.double(), tracked.inverse.double(), tracked.logabsdet, base.dtype)
        for tensor, value in zip((base, tracked.inverse, tracked.logabsdet), parts, strict=True):
            tensor.copy_(value)


class BlockUnitDeterminant(UnitDeterminant, Blocks):
    """Blocks in sl(b)."""

    algebra = UNIT_DETERMINANT

    def tracked_update(self, base: Tensor) -> TrackedUpdate:
        return tracked_block_update(self, self.tracked, base, ORDER)


class LowRankUnitDeterminant(UnitDeterminant, LowRank):
    """Products of k shears."""

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        with linalg.full_precision(u.device):
            return u - v @ linalg.solve(v.mT @ v, v.mT @ u), v

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            p, q = self.factors(self.scaled_u, self.v)
            inverse = self.tracked.current(base).inverse
            x = fused_linear.identity_plus_low_rank(linalg.rows_times(y.to(base.dtype), inverse), -p, q)
        record_solve(self, base, x, inverse.mT)
        return x

    def inverse(self, base: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            inverse = self.tracked.current(base).inverse
            p, q = self.factors(self.scaled_u, self.v)
            result = linalg.add_low_rank(inverse, -p, linalg.tall_matmul(inverse.mT, q))
        record_inverse(self, base, result, inverse.mT)
        return result

    def tracked_update(self, base: Tensor) -> TrackedUpdate:
        return self.tracked.current(base).propose(base, *self.additive_factors(base), ORDER, self.merge_index)


UnitDeterminant.shapes = (BlockUnitDeterminant, LowRankUnitDeterminant)
