"""The shapes of B for invertible matrices: all entries, blocks, and the paper's low rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch._options import check_choice
from p4torch.core.blocks import Blocks
from p4torch.core.directions import LinearOperator, matrix_operator
from p4torch.core.low_rank import LowRank, Side
from p4torch.core.perturbation import Perturbation
from p4torch.core.step_size import block_gain, size_of
from p4torch.errors import ArgumentError
from p4torch.linalg import fused_linear, relative, triangular
from p4torch.linalg.matrix_groups import GENERAL, GENERAL_EXPONENTIAL, LOWER, UPPER
from p4torch.linalg.tracked_inverse import TrackedUpdate
from p4torch.properties._math.checks import ORDER
from p4torch.properties._math.inverse_gradients import record_inverse, record_solve
from p4torch.properties._math.tracked_blocks import tracked_block_update
from p4torch.properties.invertible import Invertible as Invertible

#: After how many steps triangular factors are merged by default: they reach all of their component without a merge.
TRIANGULAR_INTERVAL = 1000


class _Entries(Invertible, Blocks):
    """What all entries and blocks of them have in common."""

    def __init__(self, base: Tensor, rank: None = None, form: Any = None, **options: Any) -> None:
        check_choice("loss_on", options.get("loss_on", "forward"), ("forward",), "'forward', unless `rank` is given")
        if options.get("max_update_norm") is not None:
            raise ArgumentError.of("max_update_norm", "None, unless `rank` is given", repr(options["max_update_norm"]))
        super().__init__(base, rank, form, **options)

    def affine_logabsdet(self, base: Tensor, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.single_block:
            return self.affine(base, x, bias), self.logabsdet(base)
        weight, logabsdet = self.with_logabsdet(base)
        return linalg.rows_times(x, weight, bias), logabsdet

    @property
    def single_block(self) -> bool:
        """Whether there is one block, of all coordinates."""
        return not self.permuted


class AdditiveInvertible(_Entries):
    """All entries: A + g B. Inverse and determinant are those of a dense matrix, by LAPACK."""

    algebra, forms = GENERAL, ("additive",)
    gain: Tensor

    def __init__(self, base: Tensor, rank: None = None, form: Any = None, **options: Any) -> None:
        super().__init__(base, rank, form, **options)
        if not self.single_block or options.get("side") is not None:
            expected = "relative, exponential or triangular, with `block` below n or `side`"
            raise ArgumentError.of("form", expected, repr(form))
        self.register_buffer("gain", base.new_ones(*base.shape[:-2], 1, 1))
        self._fit_gain(base)

    def after_admission(self, base: Tensor) -> None:
        super().after_admission(base)
        self._fit_gain(base)

    @torch.no_grad()
    def _fit_gain(self, base: Tensor) -> None:
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
        inverse = linalg.unbatched(torch.linalg.inv_ex, candidate)[0]
        sign, change = self._change_to(base, candidate)
        turn = int(self.attempts)
        return self.tracked.update_to(candidate, inverse, sign, change, ORDER, turn, base.dtype)


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
        fast = {"relative": relative.product, "triangular": triangular.product}.get(self.form)
        if fast is None or not self.single_block or (self.form == "relative" and self.side != "right"):
            return super().with_logabsdet(base)
        assert self.right is not None
        with linalg.full_precision(base.device):
            weight, change = fast(base, self.right.squeeze(-3), self._gain(self.right))
        return weight, self.tracked.current(base).logabsdet.to(base.dtype) + change

    @torch.no_grad()
    def tracked_update(self, base: Tensor) -> TrackedUpdate:
        return tracked_block_update(self, self.tracked, base, ORDER)


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
        return tracked.propose(base, *self.additive_factors(base), ORDER, int(self.attempts), in_place=True)

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

    @torch.no_grad()
    def after_step(self) -> None:
        if self.max_update_norm is not None:
            self.clip_factor(torch.linalg.matrix_norm(self.v.mT @ self.scaled_u), self.max_update_norm)


Invertible.shapes = (AdditiveInvertible, BlockInvertible, LowRankInvertible)
