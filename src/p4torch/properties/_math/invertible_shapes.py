"""The shapes of B for invertible matrices: all entries, blocks, and the paper's low rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch._options import check_choice
from p4torch.core.blocks import Blocks
from p4torch.core.directions import Maps, of_matrix, of_rows
from p4torch.core.low_rank import LowRank, Side
from p4torch.core.perturbation import Perturbation
from p4torch.core.step_size import block_gain, size_of
from p4torch.errors import ArgumentError
from p4torch.linalg import fused_linear as rows
from p4torch.linalg import relative, triangular
from p4torch.linalg.matrix_groups import GENERAL, GENERAL_EXPONENTIAL, LOWER, UPPER
from p4torch.linalg.tracked_inverse import TrackedUpdate
from p4torch.properties._math.following import followed
from p4torch.properties.invertible import Invertible as Invertible

#: After how many steps triangular factors are merged by default: they reach all of their component without a merge.
TRIANGULAR_INTERVAL = 1000


class _Entries(Invertible, Blocks):
    """What all entries and blocks of them have in common."""

    def __init__(self, base: Tensor, rank: None = None, form: Any = None, **options: Any) -> None:
        check_choice("through", options.get("through", "forward"), ("forward",), "'forward', unless `rank` is given")
        if options.get("growth") is not None:
            raise ArgumentError.of("growth", "None, unless `rank` is given", repr(options["growth"]))
        super().__init__(base, rank, form, **options)

    def affine_logabsdet(self, base: Tensor, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.whole:
            return self.affine(base, x, bias), self.logabsdet(base)
        weight, logabsdet = self.with_logabsdet(base)
        return linalg.rows_times(x, weight, bias), logabsdet

    @property
    def whole(self) -> bool:
        """Whether there is one block, of all coordinates."""
        return not self.permuted


class AdditiveInvertible(_Entries):
    """All entries: A + g B. Inverse and determinant are those of a dense matrix, by LAPACK."""

    algebra, forms = GENERAL, ("additive",)
    gain: Tensor

    def __init__(self, base: Tensor, rank: None = None, form: Any = None, **options: Any) -> None:
        super().__init__(base, rank, form, **options)
        if not self.whole or options.get("side") is not None:
            expected = "relative, exponential or triangular, with `block` below n or `side`"
            raise ArgumentError.of("form", expected, repr(form))
        self.register_buffer("gain", base.new_ones(*base.shape[:-2], 1, 1))
        self.set_gain(base)

    @torch.no_grad()
    def set_gain(self, base: Tensor) -> None:
        """Fit g to a base that was admitted."""
        natural = block_gain(base.shape[-1]) * size_of(base)[..., None, None]
        self.gain.copy_(natural if self.scale is None else torch.full_like(natural, self.scale))

    def forward(self, base: Tensor) -> Tensor:
        assert self.right is not None
        return torch.addcmul(base, self.gain, self.right.squeeze(-3))

    def exact_candidate(self, base: Tensor) -> Tensor:
        assert self.right is not None
        return linalg.in_double(base) + linalg.in_double(self.gain) * linalg.in_double(self.right.squeeze(-3))

    def with_logabsdet(self, base: Tensor) -> tuple[Tensor, Tensor]:
        weight = self(base)
        with linalg.full_precision(base.device):
            return weight, linalg.slogdet(weight)[1].to(weight.dtype)

    solve = Perturbation.solve
    inverse = Perturbation.inverse

    def determinant_change(self, base: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        return self._change_to(base, self(base) if dtype is None else self.exact_candidate(base))

    def _change_to(self, base: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """sign and log|det W / det A|, `(...)`."""
        tracked, (sign, logabsdet) = self.tracked.current(base), linalg.slogdet(weight)
        return tracked.sign.to(sign.dtype) * sign, logabsdet - tracked.logabsdet.to(logabsdet.dtype)

    @torch.no_grad()
    def tracked_update(self, base: Tensor) -> TrackedUpdate:
        candidate = self.exact_candidate(base)
        inverse = linalg.one_by_one(torch.linalg.inv_ex, candidate)[0]
        sign, change = self._change_to(base, candidate)
        turn = int(self.attempts)
        return self.tracked.follow(candidate, inverse, sign, change, self.order, turn, base.dtype)


class BlockInvertible(_Entries):
    """Blocks in gl(b): relative moves, exponentials, or triangular factors on both sides."""

    forms = ("relative", "exponential", "triangular")

    def __init__(self, base: Tensor, rank: None = None, form: Any = None, **options: Any) -> None:
        form = "relative" if form is None else form
        check_choice("form", form, self.forms, f"one of {', '.join(self.forms)}")
        if form == "triangular":
            if options.get("side") is not None:
                raise ArgumentError.of("side", "None: triangular factors act on both", repr(options["side"]))
            self.algebra, self.left_algebra, self.interval = UPPER, LOWER, TRIANGULAR_INTERVAL
        else:
            self.algebra = GENERAL_EXPONENTIAL if form == "exponential" else GENERAL
        super().__init__(base, rank, form, **options)

    def determinant_change(self, base: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        return Blocks.determinant_change(self, base, dtype)

    def with_logabsdet(self, base: Tensor) -> tuple[Tensor, Tensor]:
        fast = {"relative": relative.moved, "triangular": triangular.product}.get(self.form)
        if fast is None or not self.whole or (self.form == "relative" and self.side != "right"):
            return super().with_logabsdet(base)
        assert self.right is not None
        with linalg.full_precision(base.device):
            weight, change = fast(base, self.right.squeeze(-3), self._gain(self.right))
        return weight, self.tracked.current(base).logabsdet.to(base.dtype) + change

    @torch.no_grad()
    def tracked_update(self, base: Tensor) -> TrackedUpdate:
        return followed(self, self.tracked, base, self.order)


class LowRankInvertible(Invertible, LowRank):
    """The paper's P4Inv, of any rank and in two forms."""

    forms = ("additive", "exponential")

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


Invertible.shapes = (AdditiveInvertible, BlockInvertible, LowRankInvertible)
