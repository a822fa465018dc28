"""The shapes of B for invertible matrices: all entries, blocks, and the low rank of `low_rank_invertible`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch._options import check_choice
from p4torch.core.blocks import Blocks
from p4torch.core.perturbation import Perturbation
from p4torch.core.step_size import block_gain, size_of
from p4torch.errors import ArgumentError
from p4torch.linalg import relative, triangular
from p4torch.linalg.matrix_groups import GENERAL, GENERAL_EXPONENTIAL, LOWER, UPPER
from p4torch.linalg.tracked_inverse import TrackedUpdate
from p4torch.properties._math.checks import ORDER
from p4torch.properties._math.low_rank_invertible import LowRankInvertible as LowRankInvertible
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
        return torch.addcmul(base, self.gain.to(base.dtype), self.right.squeeze(-3))

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
        turn = self.merge_index
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


Invertible.shapes = (AdditiveInvertible, BlockInvertible, LowRankInvertible)
