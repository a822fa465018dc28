"""Invertible matrices with their inverse and determinant: the paper's P4Inv, of any rank and in two forms."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from p4torch import linalg, rows
from p4torch.directions import Maps, of_matrix, of_rows
from p4torch.errors import ArgumentError
from p4torch.low_rank import Directions, LowRank
from p4torch.merging import Decision, MergeReport, Proposal, Veto
from p4torch.properties.checks import (
    RESIDUAL_BOUND,
    Bounds,
    check_nonsingular,
    check_number,
    check_options,
    hinge,
    singular,
    veto_outside,
)
from p4torch.tracking import TrackedInverse

#: Bounds of log|det R_B(A)| for n <= 64. It is a sum over n singular values: beyond, the bounds grow with n.
LOGABSDET_BOUNDS, LOGABSDET_SIZE = (-2.5, 15.5), 64


class Invertible(LowRank):
    """S = GL(n), with A⁻¹, log|det A| and sign det A tracked; U, V `(..., n, k)`.

        additive:     R_B(A) = A + U Vᵀ                                 (k = 1: equations 3 and 4 of the paper)
        exponential:  R_B(A) = A exp(U Vᵀ) = A (I + U φ₁(VᵀU) Vᵀ)       (stays in its component of GL(n))

    B₀ is U = 0 and V ~ `scale` · N(0, 1). Near B₀ the matrix moves by dA = dU Vᵀ, so the length of V sets the
    effective learning rate of the matrix: with Adam, a step of size η in U moves A by about η · `scale` · √(nk) in norm
    per row. The additive form may cross det = 0 between merges: it comes out right on the other side.

    Args:
        base: `(..., n, n)`, nonsingular.
        rank: k >= 1. 2nk numbers train instead of n².
        form: "additive" or "exponential".
        scale, directions, train_directions: see `p4torch.low_rank.LowRank`; the paper's are 1, "random" and True.
        through: which of the two maps the loss looks at. "inverse" fits directions to W⁻¹ = R_B(A)⁻¹: V <- AᵀV after
            each redraw, so that U moves W⁻¹ by -U Vᵀ to first order, with the V before, as it otherwise moves W.
        growth: c, or None. After each optimizer step U <- U · min(1, c / |VᵀU|_F), by a `MergeScheduler`: no interval
            multiplies the determinant by more than e^(c√k).
        change_bounds: a merge is skipped (softly) if log|det R_B(A) / det A| leaves them, or None.
        logabsdet_bounds: the same for log|det R_B(A)|, relative to the matrix that was admitted, or None. By default
            (-2.5, 15.5), times n/64 for n > 64.
        force_every: after this many attempts in a row the two bounds above are ignored once; 0 for never.
        residual_bound: a merge is skipped if the new inverse X has max|A X p - p| above it, p = ±1: the matrix is then
            singular to working precision. Never overridden.
        order: of the iterative inversion that corrects the inverse: 2, 3 or 7.
        penalty_weight: of `penalty`, the squared hinge on both bounds.

    Raises:
        ArgumentError: for a base that is not square, not real, not finite or singular; for options out of range.

    Source: Krämer, Köhler and Noé (2020), sections 3.2 and 3.3; defaults of the bounds from the longer paper by the
    same authors (arXiv 2010.07033), whose layers start at |det A| = 1, where "relative" changes nothing.
    """

    def __init__(
        self,
        base: Tensor,
        rank: int = 1,
        form: Literal["additive", "exponential"] = "additive",
        *,
        scale: float = 1.0,
        directions: Directions = "random",
        train_directions: bool = True,
        through: Literal["forward", "inverse"] = "forward",
        growth: float | None = None,
        change_bounds: Bounds = (-6.0, 15.5),
        logabsdet_bounds: Bounds | Literal["default"] = "default",
        force_every: int = 10,
        residual_bound: float = RESIDUAL_BOUND,
        order: int = 7,
        penalty_weight: float = 0.1,
    ) -> None:
        super().__init__(
            base,
            rank,
            scale=scale,
            directions=directions,
            train_directions=train_directions,
            side="add" if form == "additive" else "right",
        )
        if logabsdet_bounds == "default":
            factor = max(1.0, base.shape[-1] / LOGABSDET_SIZE)
            logabsdet_bounds = (LOGABSDET_BOUNDS[0] * factor, LOGABSDET_BOUNDS[1] * factor)
        check_options(form, order, change_bounds, logabsdet_bounds)
        check_number("residual_bound", residual_bound, 1e-30)
        if through not in ("forward", "inverse"):
            raise ArgumentError.of("through", "forward or inverse", repr(through))
        if growth is not None:
            check_number("growth", growth, 1e-30)
        check_number("penalty_weight", penalty_weight, 0.0)
        if not isinstance(force_every, int) or force_every < 0:
            raise ArgumentError.of("force_every", "an integer >= 0", repr(force_every))
        check_nonsingular(base)
        self.form, self.through, self.growth = form, through, growth
        self.change_bounds, self.logabsdet_bounds = change_bounds, logabsdet_bounds
        self.force_every, self.residual_bound = force_every, residual_bound
        self.order, self.penalty_weight = order, penalty_weight
        self.tracked = TrackedInverse(base)
        self.adapt(base)

    # --- R_B and what follows from it, O(n²k) -----------------------------------------------------------------------

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return (u, v) if self.form == "additive" else (u @ linalg.phi1(v.mT @ u), v)

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        return self._solve(base, y)[0]

    def solve_logabsdet(self, base: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, change = self._solve(base, y)
        return x, self.tracked.logabsdet.to(base.dtype) + change

    def _solve(self, base: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The rows, and log|det R_B(A) / det A|, which comes along."""
        with linalg.full_precision(base.device):
            inverse, y = self.tracked.current(base).inverse, y.to(base.dtype)
            if self.form == "additive":
                x, change = rows.solve(y, inverse, self.u, self.v)
            else:
                x, change = rows.shift(linalg.rows_times(y, inverse), *self.factors(-self.u, self.v)), self._change()
        if self.sketch is not None:  # ∂L/∂R = -R⁻ᵀ gᵀ x; R⁻¹ is close to X at the end of an interval, too
            back = of_matrix(inverse.mT)
            self.sketch.see(x, lambda g: self.acting(base, back @ of_rows(-g, x.detach(), base.dim() > 2)))
            self._see_change(base, change)
        return x, change

    def inverse(self, base: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            inverse = self.tracked.current(base).inverse
            found = self._inverse(inverse)
        if self.sketch is not None:  # ∂L/∂R = -R⁻ᵀ g R⁻ᵀ
            back = of_matrix(inverse.mT)
            self.sketch.see(found, lambda g: self.acting(base, back @ of_matrix(-g) @ back))
        return found

    def _inverse(self, inverse: Tensor) -> Tensor:
        if self.form == "additive":
            x_u = linalg.thin(inverse, self.u)
            z = linalg.solve(linalg.capacitance(x_u, self.v), linalg.thin(inverse.mT, self.v).mT)
            return linalg.add_low_rank(inverse, -x_u, z.mT)
        p, q = self.factors(-self.u, self.v)
        return linalg.add_low_rank(inverse, p, linalg.thin(inverse.mT, q))

    def logabsdet(self, base: Tensor) -> Tensor:
        known = self.tracked.current(base).logabsdet.to(base.dtype)
        change = self._change()
        self._see_change(base, change)
        return known + change

    def _see_change(self, base: Tensor, change: Tensor) -> None:
        """The share of log|det| in informed directions: ∂ log|det R| / ∂R = R⁻ᵀ."""
        if self.sketch is not None:
            inverse = self.tracked.inverse
            self.sketch.see(change, lambda g: self.acting(base, of_matrix(g[..., None, None] * inverse.mT)))

    def sign(self, base: Tensor) -> Tensor:
        sign = self.tracked.current(base).sign.to(base.dtype)
        if self.form == "exponential":
            return sign
        with linalg.full_precision(base.device):
            x_u = linalg.thin(self.tracked.inverse, self.u)
            return sign * linalg.slogdet(linalg.capacitance(x_u, self.v))[0]

    def _change(self) -> Tensor:
        """log|det R_B(A) / det A|, `(...)`."""
        with linalg.full_precision(self.u.device):
            if self.form == "exponential":
                return (self.u * self.v).sum((-2, -1))
            return rows.change(self.tracked.inverse, self.u, self.v)

    # --- directions and steps -----------------------------------------------------------------------------------------

    def acting(self, base: Tensor, gradient: Maps) -> Maps:
        if self.through == "forward":
            return super().acting(base, gradient)
        back = of_matrix(base.detach().mT)
        return back @ -gradient @ back  # ∂L/∂W⁻¹ = -Wᵀ G Wᵀ

    @torch.no_grad()
    def adapt(self, base: Tensor) -> None:
        if self.through == "inverse":
            self.v.copy_(base.mT @ self.v)

    @torch.no_grad()
    def limit(self) -> None:
        if self.growth is not None:
            self.shorten(torch.linalg.matrix_norm(self.v.mT @ self.u), self.growth)

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """0 for a nonsingular matrix, 1 for one that is singular to working precision (GL(n) is dense: no other
        distance means much)."""
        return singular(tensor).to(tensor.dtype)

    def project(self, tensor: Tensor) -> Tensor:
        """Raises ArgumentError: nobody should train on from a singular matrix unawares."""
        check_nonsingular(tensor, "tensor")
        return tensor

    def refresh(self, base: Tensor) -> None:
        self.tracked.refresh(base)

    def right_inverse(self, tensor: Tensor) -> Tensor:
        admitted: Tensor = super().right_inverse(tensor)
        self.tracked.mark()
        return admitted

    # --- merges -------------------------------------------------------------------------------------------------------

    def propose(self, base: Tensor) -> Proposal:
        tracked = self.tracked.current(base)
        update = tracked.propose(base, *self.additive_factors(base), self.order, int(self.attempts), in_place=True)
        total = update.logabsdet - tracked.admitted
        forced = self.skips + 1 >= self.force_every if self.force_every else torch.zeros_like(self.skips).bool()
        vetoes = [
            Veto("R_B(A) is singular", ~update.logabsdet_change.isfinite()),
            Veto(
                f"the inverse's residual is above {self.residual_bound:g}: R_B(A) is singular to working precision",
                ~(update.residual <= self.residual_bound),
            ),
        ]
        for name, value, bounds in (
            ("log|det R_B(A) / det A|", update.logabsdet_change, self.change_bounds),
            ("log|det R_B(A)| relative to the admitted matrix", total, self.logabsdet_bounds),
        ):
            vetoes += veto_outside(name, value, bounds, forced)
        scalars = [(tracked.logabsdet, update.logabsdet), (tracked.sign, update.sign)]
        step = update.step
        if step is not None:
            return Proposal(None, scalars, vetoes, lambda where: step.write(base, tracked.inverse, where))
        assert update.inverse is not None
        return Proposal(update.base, [(tracked.inverse, update.inverse), *scalars], vetoes)

    def commit(
        self, base: Tensor, decision: Decision, accepted: Tensor, generator: torch.Generator, *reason: str
    ) -> MergeReport:
        report = super().commit(base, decision, accepted, generator, *reason)
        if report.ok:
            self.tracked.vouch(base)
        return report

    def correct(self, base: Tensor) -> None:
        """Where the inverse has drifted: a step of the iterative inversion, the exact one where that would diverge."""
        self.tracked.correct(base, self.order)

    def penalty(self, base: Tensor) -> Tensor:
        """w · Σ (hinge of log|det R_B(A) / det A|)² + (hinge of log|det R_B(A)|)², each beyond its bounds."""
        tracked = self.tracked.current(base)
        change = self._change()
        total = (tracked.logabsdet - tracked.admitted).to(change.dtype) + change
        return self.penalty_weight * (hinge(change, self.change_bounds) + hinge(total, self.logabsdet_bounds))

    def extra_repr(self) -> str:
        return f"rank={self.rank}, form={self.form!r}, scale={self.scale:g}"
