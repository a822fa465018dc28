"""Invertible matrices with their inverse and determinant. How B moves within them is in `invertible_shapes`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from p4torch._options import check_choice, check_number, refuse_old_names
from p4torch.core.blocks import moves_whole
from p4torch.core.perturbation import Perturbation
from p4torch.core.shaped import Shaped
from p4torch.core.transaction import MergeReport, Proposal, Veto
from p4torch.errors import ArgumentError
from p4torch.linalg.tracked_inverse import TrackedInverse, TrackedUpdate
from p4torch.properties._math.checks import ORDER, check_nonsingular, check_real_square, singular, veto_residual
from p4torch.properties._math.determinant_bounds import DeterminantBounds

Form = Literal["additive", "relative", "exponential", "triangular"]

#: Options that had another name.
_RENAMED = {
    "through": "loss_on",
    "growth": "max_update_norm",
    "change_bounds": "bounds=p4torch.DeterminantBounds(change=...)",
    "logabsdet_bounds": "bounds=p4torch.DeterminantBounds(total=...)",
    "force_every": "bounds=p4torch.DeterminantBounds(force_every=...)",
    "penalty_weight": "bounds=p4torch.DeterminantBounds(penalty_weight=...)",
}


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
        bounds: on log|det|, beyond which merges are skipped: a `p4torch.DeterminantBounds`, "paper" for the paper's, or
            None: no bounds, as they refuse merges of well-conditioned matrices.
        loss_on: with `rank`, which of the two maps the loss looks at. "inverse" fits directions to W⁻¹ = R_B(A)⁻¹:
            V <- AᵀV after each redraw, so that U moves W⁻¹ by -U Vᵀ to first order, with the V before, as it otherwise
            moves W ("forward").
        max_update_norm: with `rank`, c, or None. After each optimizer step U <- U · min(1, c / |g VᵀU|_F), by a
            `MergeScheduler`: no interval multiplies the determinant by more than e^(c√k).

    A merge is skipped, whatever the bounds, if the new inverse X has max|A X p - p| > 0.1, p = ±1: the matrix is then
    singular to working precision.

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
        bounds: DeterminantBounds | Literal["paper"] | None = None,
        loss_on: Literal["forward", "inverse"] = "forward",
        max_update_norm: float | None = None,
        **options: Any,
    ) -> None:
        refuse_old_names(options, _RENAMED)
        form = form or "additive"
        check_choice("form", form, self.forms, f"one of {', '.join(self.forms)}")
        check_choice("loss_on", loss_on, ("forward", "inverse"), "forward or inverse")
        if max_update_norm is not None:
            max_update_norm = check_number("max_update_norm", max_update_norm, 1e-30)
        self.form, self.loss_on, self.max_update_norm = form, loss_on, max_update_norm
        super().__init__(base, rank, **options)
        self.bounds = _chosen_bounds(bounds, base.shape[-1])
        check_real_square(base)
        self.tracked = TrackedInverse(base)
        check_nonsingular(base, inverse=self.tracked.inverse)

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

    def affine_logabsdet(self, base: Tensor, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x R_B(A)ᵀ + b and log|det R_B(A)|, where both are wanted."""
        return self.affine(base, x, bias), self.logabsdet(base)

    def solve_logabsdet(self, base: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """y R_B(A)⁻ᵀ and log|det R_B(A)|, where both are wanted."""
        return self.solve(base, y), self.logabsdet(base)

    def with_logabsdet(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """R_B(A) and log|det R_B(A)|, where both are wanted."""
        return self(base), self.logabsdet(base)

    def sign(self, base: Tensor) -> Tensor:
        return self.tracked.current(base).sign.to(base.dtype) * self.determinant_change(base)[0].detach()

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """0 for a nonsingular matrix, 1 for one that is singular to working precision (GL(n) is dense: no other
        distance means much)."""
        return singular(tensor, self.tracked.inverse).to(tensor.dtype)

    def project(self, tensor: Tensor) -> Tensor:
        """Raises ArgumentError: nobody should train on from a singular matrix unawares."""
        check_nonsingular(tensor, "tensor", self.tracked.inverse)
        return tensor

    def refresh(self, base: Tensor) -> None:
        self.tracked.refresh(base)

    def after_admission(self, base: Tensor) -> None:
        super().after_admission(base)
        self.tracked.set_reference()

    # --- merges -------------------------------------------------------------------------------------------------------

    def propose(self, base: Tensor) -> Proposal:
        tracked = self.tracked.current(base)
        update = self.tracked_update(base)
        vetoes = [
            Veto("R_B(A) is singular", ~update.logabsdet_change.isfinite()),
            veto_residual(update.residual, "R_B(A) is singular to working precision"),
            *self.bounds.vetoes(update.logabsdet_change, update.logabsdet - tracked.admitted, self.skips),
        ]
        scalars = [(tracked.logabsdet, update.logabsdet), (tracked.sign, update.sign)]
        step = update.step
        if step is not None:
            return Proposal(None, scalars, vetoes, lambda where: step.write(base, tracked.inverse, where))
        assert update.inverse is not None
        return Proposal(update.base, [(tracked.inverse, update.inverse), *scalars], vetoes)

    def after_commit(self, base: Tensor, report: MergeReport) -> None:
        super().after_commit(base, report)
        if report.ok:
            self.tracked.mark_verified(base)

    def correct(self, base: Tensor) -> None:
        """Where the inverse has drifted: a step of the iterative inversion, the exact one where that would diverge."""
        self.tracked.correct(base, ORDER)

    def penalty(self, base: Tensor) -> Tensor:
        """That of the bounds, see `p4torch.DeterminantBounds`."""
        tracked = self.tracked.current(base)
        change = self.determinant_change(base)[1]
        total = (tracked.logabsdet - tracked.admitted).to(change.dtype) + change
        return self.bounds.penalty(change, total)

    def extra_repr(self) -> str:
        return f"form={self.form!r}, {super().extra_repr()}"


def _chosen_bounds(bounds: object, n: int) -> DeterminantBounds:
    if bounds is None:
        return DeterminantBounds()
    if isinstance(bounds, str) and bounds == "paper":
        return DeterminantBounds.paper(n)
    if not isinstance(bounds, DeterminantBounds):
        raise ArgumentError.of("bounds", "None, 'paper' or a p4torch.DeterminantBounds", repr(bounds))
    return bounds
