"""How far a determinant may move: bounds beyond which merges are skipped, and a penalty that keeps away from them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from p4torch._options import check_integer, check_number
from p4torch.core.transaction import Veto
from p4torch.errors import ArgumentError

Bounds = tuple[float, float] | None

#: The paper's total bounds are those of log|det| for n <= 64. It is a sum over n singular values: beyond, they grow.
PAPER_SIZE = 64


@dataclass(frozen=True)
class DeterminantBounds:
    """Bounds on log|det| of an `Invertible`: a merge that would leave them is skipped, unless it is forced.

        Invertible(base, rank=1, bounds=DeterminantBounds(change=(-1.0, 1.0)))

    Args:
        change: lower and upper bound, below and above 0, of log|det R_B(A) / det A|; None for no bounds.
        total: the same for log|det R_B(A)| relative to the matrix that was admitted.
        force_every: after this many attempts in a row both are ignored once; 0 for never.
        penalty_weight: w of the penalty w Σ (log|det| beyond its bounds)², see `p4torch.penalty`.

    Raises:
        ArgumentError: for what are no bounds, or options out of range.

    Source: the longer paper by Krämer, Köhler and Noé (2020, arXiv 2010.07033), whose layers start at |det A| = 1.
    """

    change: Bounds = None
    total: Bounds = None
    force_every: int = 10
    penalty_weight: float = 0.1

    def __post_init__(self) -> None:
        for name, value in (
            ("change", _checked("change", self.change)),
            ("total", _checked("total", self.total)),
            ("force_every", check_integer("force_every", self.force_every, 0)),
            ("penalty_weight", check_number("penalty_weight", self.penalty_weight, 0.0)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def paper(cls, n: int, force_every: int = 10, penalty_weight: float = 0.1) -> DeterminantBounds:
        """The paper's, for matrices `(n, n)`: change (-6, 15.5), total (-2.5, 15.5), times n/64 for n > 64."""
        factor = max(1.0, n / PAPER_SIZE)
        return cls((-6.0, 15.5), (-2.5 * factor, 15.5 * factor), force_every, penalty_weight)

    def vetoes(self, change: Tensor, total: Tensor, skips: Tensor) -> list[Veto]:
        """Soft vetoes where a value `(...)` is outside, after so many `skips` `(...)`."""
        forced = skips + 1 >= self.force_every if self.force_every else torch.zeros_like(skips).bool()
        named = (
            ("log|det R_B(A) / det A|", change, self.change),
            ("log|det R_B(A)| relative to the admitted matrix", total, self.total),
        )
        return [
            Veto(f"{name} is outside {bounds}", ~((value >= bounds[0]) & (value <= bounds[1])) & ~forced, soft=True)
            for name, value, bounds in named
            if bounds is not None
        ]

    def penalty(self, change: Tensor, total: Tensor) -> Tensor:
        """w Σ (log|det| beyond its bounds)², `()`."""
        return self.penalty_weight * (_hinge(change, self.change) + _hinge(total, self.total))


def _checked(name: str, bounds: Any) -> Bounds:
    """None, or two numbers around 0 as floats."""
    if bounds is None:
        return None
    usable = isinstance(bounds, tuple) and len(bounds) == 2 and all(isinstance(value, Real) for value in bounds)
    if not usable or not bounds[0] < 0 < bounds[1]:
        raise ArgumentError.of(name, "None or (below 0, above 0)", repr(bounds))
    return float(bounds[0]), float(bounds[1])


def _hinge(value: Tensor, bounds: Bounds) -> Tensor:
    """Σ (value beyond its bounds)², `()`."""
    if bounds is None:
        return value.new_zeros(())
    return (F.relu(bounds[0] - value).square() + F.relu(value - bounds[1]).square()).sum()
