"""Invertible matrices with their inverse and determinant. How B moves within them is in `invertible_shapes`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from p4torch._options import check_choice, check_integer
from p4torch.core.blocks import moves_whole
from p4torch.core.perturbation import Perturbation
from p4torch.core.shaped import Shaped
from p4torch.core.transaction import Decision, MergeReport, Proposal, Veto
from p4torch.linalg.tracked_inverse import TrackedInverse, TrackedUpdate
from p4torch.properties._math.checks import (
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

Form = Literal["additive", "relative", "exponential", "triangular"]


class Invertible(Shaped):
    """S = GL(n), with A⁻¹, log|det A| and sign det A tracked. All entries B `(n, n)`, blocks B_i `(b, b)`, or U, V
    `(..., n, k)`:

                      all                       blocks                            rank k
        additive:     A + g B                                                     A + g U Vᵀ   (equations 3, 4)
        relative:     A (I + g B)               A (I + P blockdiag(g B_i) Pᵀ)
        exponential:  A exp(g B)                A P blockdiag(exp(g B_i)) Pᵀ      A exp(g U Vᵀ)
        triangular:   (I + L) A (U + exp(D))    with L, D, U in blocks

    where L, D and U are the strictly lower, diagonal and strictly upper parts of g B. B₀ is B = 0, or U = 0 and
    V ~ N(0, 1). The first two forms may cross det = 0 between merges, and come out right on the other side; the others
    stay in their component of GL(n). The additive form moves A as a plain matrix does, wherever it starts. Relative
    moves (dA = g A dB, a relative gradient) and exponential ones are multiples of A: a singular value near 0 grows
    slowly. log|det| costs O(n³) a step for all entries in the additive and relative form, O(n) in the triangular one,
    which suits maximum likelihood.

    Args:
        base: `(..., n, n)`, nonsingular.
        rank, block, side, scale, directions, train_directions: see `p4torch.core.shaped.Shaped`. Rank k trains 2nk
            numbers instead of n²; the paper's are rank=1, scale=1.
        form: "additive", "relative", "exponential" or "triangular". None: relative for blocks and where `side` is
            given, else additive.
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

    #: Those that a shape has.
    forms: ClassVar[tuple[str, ...]] = get_args(Form)

    def __init__(
        self,
        base: Tensor,
        rank: int | None = None,
        form: Form | None = None,
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
        check_options(form or "additive", order, self.forms)
        residual_bound = check_number("residual_bound", residual_bound, 1e-30)
        check_choice("through", through, ("forward", "inverse"), "forward or inverse")
        if growth is not None:
            growth = check_number("growth", growth, 1e-30)
        penalty_weight = check_number("penalty_weight", penalty_weight, 0.0)
        force_every = check_integer("force_every", force_every, 0)
        self.form, self.through, self.growth = form or "additive", through, growth
        super().__init__(base, rank, **options)
        check_nonsingular(base)
        self.change_bounds, self.logabsdet_bounds = change_bounds, logabsdet_bounds
        self.force_every, self.residual_bound = force_every, residual_bound
        self.order, self.penalty_weight = int(order), penalty_weight
        self.tracked = TrackedInverse(base)
        self.adapt(base)

    @classmethod
    def shape_of(cls, base: Any, rank: int | None, *args: Any, **options: Any) -> type[Perturbation]:
        entries, blocks, low_rank = cls.shapes
        if rank is not None:
            return low_rank
        form = args[0] if args else options.get("form")
        if form is None and options.get("side") is None and moves_whole(base, options.get("block")):
            form = "additive"
        return entries if isinstance(form, str) and form == "additive" else blocks

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

    def extra_repr(self) -> str:
        return f"form={self.form!r}, {super().extra_repr()}"
