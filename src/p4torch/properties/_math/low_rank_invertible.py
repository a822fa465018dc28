"""Invertible matrices of the paper's low-rank shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.directions import LinearOperator, matrix_operator
from p4torch.core.low_rank import LowRank, Side
from p4torch.linalg import fused_linear
from p4torch.linalg.tracked_inverse import TrackedUpdate
from p4torch.properties._math.checks import ORDER
from p4torch.properties._math.inverse_gradients import record_inverse, record_solve
from p4torch.properties.invertible import Invertible


class LowRankInvertible(Invertible, LowRank):
    """The paper's P4Inv, of any rank and in two forms."""

    forms = ("additive", "exponential")

    def __init__(self, base: Tensor, rank: int, form: Any = None, **options: Any) -> None:
        super().__init__(base, rank, form, **options)
        self._fit_directions(base)

    def factors_act(self, base: Tensor) -> Side:
        return "add" if self.form == "additive" else "right"

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return (u, v) if self.form == "additive" else (u @ linalg.phi1(v.mT @ u), v)

    # --- inverse and determinant, O(n²k) ------------------------------------------------------------------------------

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        return self._solve(base, y)[0]

    def solve_logabsdet(self, base: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, change = self._solve(base, y)
        return x, self.tracked.logabsdet.to(base.dtype) + change

    def _solve(self, base: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The rows, and log|det R_B(A) / det A|, which comes along."""
        with linalg.full_precision(base.device):
            inverse, y, u = self.tracked.current(base).inverse, y.to(base.dtype), self.scaled_u
            if self.form == "additive":
                x, change = fused_linear.solve(y, inverse, u, self.v)
            else:
                x = fused_linear.identity_plus_low_rank(linalg.rows_times(y, inverse), *self.factors(-u, self.v))
                change = self._logabsdet_change()
        record_solve(self, base, x, inverse.mT)
        self._record_logabsdet(base, change)
        return x, change

    def inverse(self, base: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            inverse = self.tracked.current(base).inverse
            result = self._inverse(inverse, self.scaled_u)
        record_inverse(self, base, result, inverse.mT)
        return result

    def _inverse(self, inverse: Tensor, u: Tensor) -> Tensor:
        if self.form == "additive":
            x_u = linalg.tall_matmul(inverse, u)
            z = linalg.solve(linalg.capacitance(x_u, self.v), linalg.tall_matmul(inverse.mT, self.v).mT)
            return linalg.add_low_rank(inverse, -x_u, z.mT)
        p, q = self.factors(-u, self.v)
        return linalg.add_low_rank(inverse, p, linalg.tall_matmul(inverse.mT, q))

    def logabsdet(self, base: Tensor) -> Tensor:
        known = self.tracked.current(base).logabsdet.to(base.dtype)
        change = self._logabsdet_change()
        self._record_logabsdet(base, change)
        return known + change

    def sign(self, base: Tensor) -> Tensor:
        sign = self.tracked.current(base).sign.to(base.dtype)
        if self.form == "exponential":
            return sign
        with linalg.full_precision(base.device):
            x_u = linalg.tall_matmul(self.tracked.inverse, self.scaled_u)
            return sign * linalg.slogdet(linalg.capacitance(x_u, self.v))[0]

    def determinant_change(self, base: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        change = self._logabsdet_change()
        return torch.ones_like(change), change

    def _logabsdet_change(self) -> Tensor:
        """log|det R_B(A) / det A|, `(...)`."""
        with linalg.full_precision(self.u.device):
            if self.form == "exponential":
                return (self.scaled_u * self.v).sum((-2, -1))
            return fused_linear.logabsdet_update(self.tracked.inverse, self.scaled_u, self.v)

    def tracked_update(self, base: Tensor) -> TrackedUpdate:
        tracked = self.tracked.current(base)
        return tracked.propose(base, *self.additive_factors(base), ORDER, self.merge_index, in_place=True)

    # --- directions and steps -----------------------------------------------------------------------------------------

    def _record_logabsdet(self, base: Tensor, change: Tensor) -> None:
        """The share of log|det| in gradient directions: ∂ log|det R| / ∂R = R⁻ᵀ."""
        if self.sketch is not None:
            inverse = self.tracked.inverse
            self.sketch.record(change, lambda g: self.pull_back(base, matrix_operator(g[..., None, None] * inverse.mT)))

    def pull_back(self, base: Tensor, gradient: LinearOperator) -> LinearOperator:
        if self.loss_on == "forward":
            return super().pull_back(base, gradient)
        back = matrix_operator(base.detach().mT)
        return back @ -gradient @ back  # ∂L/∂W⁻¹ = -Wᵀ G Wᵀ

    @torch.no_grad()
    def _redraw(self, base: Tensor, generator: torch.Generator) -> None:
        super()._redraw(base, generator)
        self._fit_directions(base)

    @torch.no_grad()
    def _fit_directions(self, base: Tensor) -> None:
        """V <- AᵀV, for a loss on the inverse."""
        if self.loss_on == "inverse":
            self.v.copy_(base.mT @ self.v)

    @property
    def limits_steps(self) -> bool:
        return self.max_update_norm is not None

    @torch.no_grad()
    def after_step(self) -> None:
        if self.max_update_norm is not None:
            self.clip_factor(torch.linalg.matrix_norm(self.v.mT @ self.scaled_u), self.max_update_norm)
