"""Invertible matrices with their inverse and determinant: the paper's P4Inv, and relative moves by blocks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from p4torch import linalg, relative, rows
from p4torch.algebras import GENERAL, GENERAL_EXPONENTIAL
from p4torch.blocks import Blocks
from p4torch.directions import Maps, of_matrix, of_rows
from p4torch.errors import ArgumentError
from p4torch.low_rank import LowRank, Side
from p4torch.merging import Decision, MergeReport, Proposal, Veto
from p4torch.options import check_choice, check_integer
from p4torch.properties.checks import (
    RESIDUAL_BOUND,
    Bounds,
    check_nonsingular,
    check_number,
    check_options,
    chosen_bounds,
    hinge,
    singular,
    veto_outside,
)
from p4torch.properties.following import followed
from p4torch.shaped import Shaped
from p4torch.step_size import block_gain
from p4torch.tracking import TrackedInverse, TrackedUpdate


class Invertible(Shaped):
    """S = GL(n), with A⁻¹, log|det A| and sign det A tracked. Blocks B_i `(b, b)`, or U, V `(..., n, k)`:

        additive:     R_B(A) = A (I + P blockdiag(g B_i) Pᵀ)         or  A + g U Vᵀ    (k = 1: equations 3 and 4)
        exponential:  R_B(A) = A P blockdiag(exp(g B_i)) Pᵀ          or  A exp(g U Vᵀ) = A (I + g U φ₁(g VᵀU) Vᵀ)

    B₀ is B = 0, or U = 0 and V ~ N(0, 1). The additive forms may cross det = 0 between merges: they come out right on
    the other side. (Relative moves slow down near a singular A, of which they are multiples: low rank crosses better.)
    The exponential ones stay in their component of GL(n). Blocks of all coordinates move A in all n² directions, like a
    plain matrix, relative to A: dA = g A dB, a relative gradient.

    Args:
        base: `(..., n, n)`, nonsingular.
        rank, block, side, scale, directions, train_directions: see `p4torch.shaped.Shaped`. Rank k trains 2nk numbers
            instead of n²; the paper's are rank=1, scale=1.
        form: "additive" or "exponential".
        through: with `rank`, which of the two maps the loss looks at. "inverse" fits directions to W⁻¹ = R_B(A)⁻¹:
            V <- AᵀV after each redraw, so that U moves W⁻¹ by -U Vᵀ to first order, with the V before, as it otherwise
            moves W.
        growth: with `rank`, c, or None. After each optimizer step U <- U · min(1, c / |g VᵀU|_F), by a
            `MergeScheduler`: no interval multiplies the determinant by more than e^(c√k).
        change_bounds: a merge is skipped (softly) if log|det R_B(A) / det A| leaves them. None: no such bounds, by
            default, as they refuse merges of well-conditioned matrices; "paper": (-6, 15.5).
        logabsdet_bounds: the same for log|det R_B(A)|, relative to the matrix that was admitted. "paper":
            (-2.5, 15.5), times n/64 for n > 64.
        force_every: after this many attempts in a row the two bounds above are ignored once; 0 for never.
        residual_bound: a merge is skipped if the new inverse X has max|A X p - p| above it, p = ±1: the matrix is then
            singular to working precision. Never overridden.
        order: of the iterative inversion that corrects the inverse: 2, 3 or 7.
        penalty_weight: of `penalty`, the squared hinge on both bounds; without bounds it is 0.

    Raises:
        ArgumentError: for a base that is not square, not real, not finite or singular; for options out of range.

    Source: Krämer, Köhler and Noé (2020), sections 3.2 and 3.3; the bounds of "paper" from the longer paper by the
    same authors (arXiv 2010.07033), whose layers start at |det A| = 1; Gresele et al. (2020) for relative gradients.
    """

    def __init__(
        self,
        base: Tensor,
        rank: int | None = None,
        form: Literal["additive", "exponential"] = "additive",
        *,
        through: Literal["forward", "inverse"] = "forward",
        growth: float | None = None,
        change_bounds: Bounds | Literal["paper"] = None,
        logabsdet_bounds: Bounds | Literal["paper"] = None,
        force_every: int = 10,
        residual_bound: float = RESIDUAL_BOUND,
        order: int = 7,
        penalty_weight: float = 0.1,
        **options: Any,
    ) -> None:
        change_bounds, logabsdet_bounds = chosen_bounds(change_bounds, logabsdet_bounds, base.shape[-1])
        check_options(form, order)
        residual_bound = check_number("residual_bound", residual_bound, 1e-30)
        check_choice("through", through, ("forward", "inverse"), "forward or inverse")
        if growth is not None:
            growth = check_number("growth", growth, 1e-30)
        penalty_weight = check_number("penalty_weight", penalty_weight, 0.0)
        force_every = check_integer("force_every", force_every, 0)
        self.form, self.through, self.growth = form, through, growth
        super().__init__(base, rank, **options)
        check_nonsingular(base)
        self.change_bounds, self.logabsdet_bounds = change_bounds, logabsdet_bounds
        self.force_every, self.residual_bound = force_every, residual_bound
        self.order, self.penalty_weight = int(order), penalty_weight
        self.tracked = TrackedInverse(base)
        self.adapt(base)

    def factors_act(self, base: Tensor) -> Side:
        return "add" if self.form == "additive" else "right"

    # --- what a shape defines -----------------------------------------------------------------------------------------

    def determinant_change(self, base: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """sign and log|det R_B(A) / det A|, `(...)`."""
        raise NotImplementedError

    def tracked_update(self, base: Tensor) -> TrackedUpdate:
        """What a merge makes of the base and of all that is tracked."""
        raise NotImplementedError

    # --- inverse and determinant --------------------------------------------------------------------------------------

    def base_inverse(self, base: Tensor) -> Tensor:
        return self.tracked.current(base).inverse

    def logabsdet(self, base: Tensor) -> Tensor:
        return self.tracked.current(base).logabsdet.to(base.dtype) + self.determinant_change(base)[1]

    def sign(self, base: Tensor) -> Tensor:
        return self.tracked.current(base).sign.to(base.dtype) * self.determinant_change(base)[0].detach()

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
        update = self.tracked_update(base)
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
        change = self.determinant_change(base)[1]
        total = (tracked.logabsdet - tracked.admitted).to(change.dtype) + change
        return self.penalty_weight * (hinge(change, self.change_bounds) + hinge(total, self.logabsdet_bounds))


class BlockInvertible(Invertible, Blocks):
    """Blocks in gl(b): relative moves, or exponentials."""

    def __init__(self, base: Tensor, rank: None = None, form: Any = "additive", **options: Any) -> None:
        self.algebra = GENERAL if isinstance(form, str) and form == "additive" else GENERAL_EXPONENTIAL
        check_choice("through", options.get("through", "forward"), ("forward",), "'forward', unless `rank` is given")
        if options.get("growth") is not None:
            raise ArgumentError.of("growth", "None, unless `rank` is given", repr(options["growth"]))
        super().__init__(base, rank, form, **options)

    def determinant_change(self, base: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        return Blocks.determinant_change(self, base, dtype)

    def affine_logabsdet(self, base: Tensor, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self._moves_whole():
            return self.affine(base, x, bias), self.logabsdet(base)
        weight, logabsdet = self.with_logabsdet(base)
        return linalg.rows_times(x, weight, bias), logabsdet

    def with_logabsdet(self, base: Tensor) -> tuple[Tensor, Tensor]:
        if not self._moves_whole():
            return super().with_logabsdet(base)
        assert self.right is not None
        with linalg.full_precision(base.device):
            gain = self.scale or block_gain(base.shape[-1])
            weight, change = relative.moved(base, self.right.squeeze(-3), gain)
        return weight, self.tracked.current(base).logabsdet.to(base.dtype) + change

    def _moves_whole(self) -> bool:
        """Whether R_B(A) = A (I + g B): one block of all coordinates, on the right."""
        return self.form == "additive" and self.side == "right" and self.right_order is None

    @torch.no_grad()
    def tracked_update(self, base: Tensor) -> TrackedUpdate:
        return followed(self, self.tracked, base, self.order)


class LowRankInvertible(Invertible, LowRank):
    """The paper's P4Inv, of any rank and in two forms."""

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
            inverse, y, u = self.tracked.current(base).inverse, y.to(base.dtype), self.moving
            if self.form == "additive":
                x, change = rows.solve(y, inverse, u, self.v)
            else:
                x, change = rows.shift(linalg.rows_times(y, inverse), *self.factors(-u, self.v)), self._change()
        if self.sketch is not None:  # ∂L/∂R = -R⁻ᵀ gᵀ x; R⁻¹ is close to X at the end of an interval, too
            back = of_matrix(inverse.mT)
            self.sketch.see(x, lambda g: self.acting(base, back @ of_rows(-g, x.detach(), base.dim() > 2)))
            self._see_change(base, change)
        return x, change

    def inverse(self, base: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            inverse = self.tracked.current(base).inverse
            found = self._inverse(inverse, self.moving)
        if self.sketch is not None:  # ∂L/∂R = -R⁻ᵀ g R⁻ᵀ
            back = of_matrix(inverse.mT)
            self.sketch.see(found, lambda g: self.acting(base, back @ of_matrix(-g) @ back))
        return found

    def _inverse(self, inverse: Tensor, u: Tensor) -> Tensor:
        if self.form == "additive":
            x_u = linalg.thin(inverse, u)
            z = linalg.solve(linalg.capacitance(x_u, self.v), linalg.thin(inverse.mT, self.v).mT)
            return linalg.add_low_rank(inverse, -x_u, z.mT)
        p, q = self.factors(-u, self.v)
        return linalg.add_low_rank(inverse, p, linalg.thin(inverse.mT, q))

    def logabsdet(self, base: Tensor) -> Tensor:
        known = self.tracked.current(base).logabsdet.to(base.dtype)
        change = self._change()
        self._see_change(base, change)
        return known + change

    def sign(self, base: Tensor) -> Tensor:
        sign = self.tracked.current(base).sign.to(base.dtype)
        if self.form == "exponential":
            return sign
        with linalg.full_precision(base.device):
            x_u = linalg.thin(self.tracked.inverse, self.moving)
            return sign * linalg.slogdet(linalg.capacitance(x_u, self.v))[0]

    def determinant_change(self, base: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        change = self._change()
        return torch.ones_like(change), change

    def _change(self) -> Tensor:
        """log|det R_B(A) / det A|, `(...)`."""
        with linalg.full_precision(self.u.device):
            if self.form == "exponential":
                return (self.moving * self.v).sum((-2, -1))
            return rows.change(self.tracked.inverse, self.moving, self.v)

    def tracked_update(self, base: Tensor) -> TrackedUpdate:
        tracked = self.tracked.current(base)
        return tracked.propose(base, *self.additive_factors(base), self.order, int(self.attempts), in_place=True)

    # --- directions and steps -----------------------------------------------------------------------------------------

    def _see_change(self, base: Tensor, change: Tensor) -> None:
        """The share of log|det| in informed directions: ∂ log|det R| / ∂R = R⁻ᵀ."""
        if self.sketch is not None:
            inverse = self.tracked.inverse
            self.sketch.see(change, lambda g: self.acting(base, of_matrix(g[..., None, None] * inverse.mT)))

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
            self.shorten(torch.linalg.matrix_norm(self.v.mT @ self.moving), self.growth)

    def extra_repr(self) -> str:
        return f"form={self.form!r}, {super().extra_repr()}"


Invertible.shapes = (BlockInvertible, LowRankInvertible)
