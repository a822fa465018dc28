"""Invertible matrices with their inverse and determinant: the paper's P4Inv, of any rank and in two forms."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4torch import linalg
from p4torch.errors import ArgumentError
from p4torch.merging import Proposal, Veto
from p4torch.perturbation import Perturbation
from p4torch.properties.checks import (
    RESIDUAL_BOUND,
    Bounds,
    check_nonsingular,
    check_number,
    check_options,
    singular,
)
from p4torch.properties.forms import FORMS, Form
from p4torch.tracking import TrackedInverse

#: Bounds of log|det R_B(A)| for n <= 64. It is a sum over n singular values: beyond, the bounds grow with n.
LOGABSDET_BOUNDS, LOGABSDET_SIZE = (-2.5, 15.5), 64


class Invertible(Perturbation):
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
        scale: length of the redrawn directions; the paper's is 1.
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

    directions: ClassVar[tuple[str, ...]] = ("v",)

    def __init__(
        self,
        base: Tensor,
        rank: int = 1,
        form: Literal["additive", "exponential"] = "additive",
        *,
        scale: float = 1.0,
        change_bounds: Bounds = (-6.0, 15.5),
        logabsdet_bounds: Bounds | Literal["default"] = "default",
        force_every: int = 10,
        residual_bound: float = RESIDUAL_BOUND,
        order: int = 7,
        penalty_weight: float = 0.1,
    ) -> None:
        super().__init__(base)
        if logabsdet_bounds == "default":
            factor = max(1.0, base.shape[-1] / LOGABSDET_SIZE)
            logabsdet_bounds = (LOGABSDET_BOUNDS[0] * factor, LOGABSDET_BOUNDS[1] * factor)
        check_options(rank, form, order, change_bounds, logabsdet_bounds)
        for name, value, least in (("scale", scale, 1e-30), ("residual_bound", residual_bound, 1e-30)):
            check_number(name, value, least)
        check_number("penalty_weight", penalty_weight, 0.0)
        if not isinstance(force_every, int) or force_every < 0:
            raise ArgumentError.of("force_every", "an integer >= 0", repr(force_every))
        check_nonsingular(base)
        self.rank, self.form_name, self.scale = rank, form, scale
        self.change_bounds, self.logabsdet_bounds = change_bounds, logabsdet_bounds
        self.force_every, self.residual_bound = force_every, residual_bound
        self.order, self.penalty_weight = order, penalty_weight
        shape = (*base.shape[:-1], rank)
        self.u = nn.Parameter(base.new_zeros(shape))
        self.v = nn.Parameter(base.new_zeros(shape))
        self.tracked = TrackedInverse(base)
        self.reset(torch.default_generator)

    @property
    def form(self) -> Form:
        """The functions of the chosen form."""
        return FORMS[self.form_name]

    # --- R_B and what follows from it, O(n²k) -----------------------------------------------------------------------

    def forward(self, base: Tensor) -> Tensor:
        return base + linalg.low_rank(self.form.factor(base, self.u, self.v), self.v)

    def matmul(self, base: Tensor, x: Tensor) -> Tensor:
        return self.form.matmul(base, self.u, self.v, x)

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            return self.form.solve(self.tracked.current(base).inverse, self.u, self.v, y.to(base.dtype))

    def inverse(self, base: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            return self.form.inverse(self.tracked.current(base).inverse, self.u, self.v)

    def logabsdet(self, base: Tensor) -> Tensor:
        return (self.tracked.current(base).logabsdet + self._change()[1]).to(base.dtype)

    def sign(self, base: Tensor) -> Tensor:
        return (self.tracked.current(base).sign * self._change()[0]).to(base.dtype)

    def _change(self) -> tuple[Tensor, Tensor]:
        """Sign and logarithm of |det R_B(A) / det A|."""
        inverse = self.tracked.inverse
        with linalg.full_precision(inverse.device):
            return self.form.change(inverse, self.u, self.v)

    # --- the set ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.u.zero_()
        if generator is not None:
            drawn = torch.randn(self.v.shape, generator=generator, dtype=torch.float64)
            self.v.copy_(self.scale * drawn)

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
        u, v = self.u.double(), self.v.double()
        tracked = self.tracked.current(base)
        update = tracked.propose(base, self.form.factor(base.double(), u, v), v, self.order)
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
            if bounds is not None:
                outside = ~((value >= bounds[0]) & (value <= bounds[1]))
                vetoes.append(Veto(f"{name} is outside {bounds}", outside & ~forced, soft=True))
        return Proposal(
            update.base,
            [
                (tracked.inverse, update.inverse),
                (tracked.logabsdet, update.logabsdet),
                (tracked.sign, update.sign),
            ],
            vetoes,
        )

    def correct(self, base: Tensor) -> None:
        """One step of the iterative inversion; an exact inversion where that would diverge."""
        self.tracked.correct(base, self.order)

    def penalty(self, base: Tensor) -> Tensor:
        """w · Σ (hinge of log|det R_B(A) / det A|)² + (hinge of log|det R_B(A)|)², each beyond its bounds."""
        tracked = self.tracked.current(base)
        change = self._change()[1]
        total = tracked.logabsdet - tracked.admitted + change
        terms = [
            (F.relu(bounds[0] - value).square() + F.relu(value - bounds[1]).square()).sum()
            for value, bounds in (
                (change, self.change_bounds),
                (total.to(change.dtype), self.logabsdet_bounds),
            )
            if bounds is not None
        ]
        return self.penalty_weight * sum(terms, base.new_zeros(()))

    def transport(self, previous: dict[str, Tensor]) -> dict[str, Tensor]:
        """∂L/∂U = G V, so its history moves onto new directions V' by the least-squares V⁺ V'."""
        return {"u": torch.linalg.pinv(previous["v"].double()) @ self.v.double()}

    def extra_repr(self) -> str:
        return f"rank={self.rank}, form={self.form_name!r}, scale={self.scale:g}"
