"""A + B with B a whole matrix, or of low rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.core.directions import Apply
from p4torch.core.low_rank import LowRank, LowRankOptions
from p4torch.properties._math.norms import norm_bound, norm_of_low_rank

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Additive(LowRank):
    """R_B(A) = A + U Vᵀ, see `p4torch.core.low_rank.LowRank`; or, for `rank` None, A + B with B `(..., n, m)`, B₀ = 0:
    then no direction is drawn, and nothing of the optimizer's memory is stale after a merge."""

    def __init__(self, base: Tensor, rank: int | None, **options: Unpack[LowRankOptions]) -> None:
        super().__init__(base, 1 if rank is None else rank, side="add", **options)
        self.full = rank is None
        if self.full:
            del self.u, self.v
            self.b = nn.Parameter(torch.zeros_like(base))
            self.directions = ()  # type: ignore[misc]

    def base_plus_b(self, base: Tensor) -> Tensor:
        """A + B in the dtype of the base."""
        return base + self.b if self.full else super().forward(base)

    def sum_in_double(self, base: Tensor) -> Tensor:
        """A + B in float64, for merges."""
        if self.full:
            return base.double() + self.b.double()
        return linalg.add_low_rank(base.double(), *self.additive_factors(base))

    def norm_of_b(self, base: Tensor) -> Tensor:
        """‖B‖₂ `(...)`, from above."""
        return norm_bound(self.b) if self.full else norm_of_low_rank(*self.additive_factors(base))

    def frobenius_norm_of_b(self) -> Tensor:
        """‖B‖_F `(...)` from above, in float64, in a pass over B."""
        parts = (self.b,) if self.full else (self.scaled_u, self.v)
        squares = [part.detach().double().square().sum((-2, -1)) for part in parts]
        return torch.stack(squares).prod(0).sqrt()

    def _fit_gain(self, base: Tensor) -> None:
        if not hasattr(self, "b"):  # a whole B is as long as it is
            super()._fit_gain(base)

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        if hasattr(self, "b"):  # not yet, where the parent makes its factors
            self.b.zero_()
        else:
            super().reset(generator)

    def start_sketch(self, generator: torch.Generator, all_reduce_mean: Apply | None = None) -> None:
        if not self.full:
            super().start_sketch(generator, all_reduce_mean)

    def transport(self, previous: dict[str, Tensor]) -> dict[str, Tensor]:
        return {} if self.full else super().transport(previous)

    def extra_repr(self) -> str:
        return "whole" if self.full else super().extra_repr()
