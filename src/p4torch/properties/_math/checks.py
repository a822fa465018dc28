"""Options and bases that an invertible perturbation refuses, and determinants out of bounds."""

from __future__ import annotations

from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from p4torch import linalg
from p4torch._options import check_choice, is_integer
from p4torch._options import check_number as check_number
from p4torch.core.transaction import Veto
from p4torch.errors import ArgumentError

Bounds = tuple[float, float] | None

#: The paper's bounds of log|det R_B(A) / det A|, and of log|det R_B(A)| for n <= 64. The latter is a sum over n
#: singular values: beyond, its bounds grow with n.
CHANGE_BOUNDS, LOGABSDET_BOUNDS, LOGABSDET_SIZE = (-6.0, 15.5), (-2.5, 15.5), 64

#: An inverse X with max|A X - I| above it is of no use.
RESIDUAL_BOUND = 0.1


def chosen_bounds(
    change: Bounds | Literal["paper"], logabsdet: Bounds | Literal["paper"], n: int
) -> tuple[Bounds, Bounds]:
    """Both bounds as numbers, for matrices `(..., n, n)`. Raises ArgumentError for what are no bounds."""
    factor = max(1.0, n / LOGABSDET_SIZE)
    grown = (LOGABSDET_BOUNDS[0] * factor, LOGABSDET_BOUNDS[1] * factor)
    return (
        _checked_bounds("change_bounds", change, CHANGE_BOUNDS),
        _checked_bounds("logabsdet_bounds", logabsdet, grown),
    )


def check_options(form: str, order: int, forms: tuple[str, ...]) -> None:
    """Raise ArgumentError for options of `Invertible` that mean nothing; `forms` are those that a shape has."""
    check_choice("form", form, forms, f"one of {', '.join(forms)}")
    if not is_integer(order) or order not in (2, 3, 7):
        raise ArgumentError.of("order", "2, 3 or 7", order)


def _checked_bounds(name: str, bounds: Any, paper: tuple[float, float]) -> Bounds:
    """None, the paper's, or two numbers around 0."""
    if bounds is None:
        return None
    if isinstance(bounds, str) and bounds == "paper":
        return paper
    usable = isinstance(bounds, tuple) and len(bounds) == 2 and all(isinstance(value, Real) for value in bounds)
    if not usable or not bounds[0] < 0 < bounds[1]:
        raise ArgumentError.of(name, "None, 'paper' or (below 0, above 0)", repr(bounds))
    return float(bounds[0]), float(bounds[1])


def check_nonsingular(base: Tensor, argument: str = "base") -> None:
    """Raise ArgumentError for a tensor that is not real, square and nonsingular."""
    if base.is_complex():
        raise ArgumentError.of(argument, "real", base.dtype)
    if base.dim() < 2 or base.shape[-1] != base.shape[-2]:
        raise ArgumentError.of(argument, "square, (..., n, n)", tuple(base.shape))
    bad = singular(base)
    if bool(bad.any()):
        came = f"{int(bad.sum())} singular to working precision of {bad.numel()} matrices"
        raise ArgumentError.of(argument, "nonsingular", came)


def singular(base: Tensor) -> Tensor:
    """`(...)`: where A has no inverse X in its own dtype with max|A X - I| <= `RESIDUAL_BOUND`."""
    exact = base.detach().double()
    inverse = linalg.one_by_one(torch.linalg.inv_ex, exact)[0].to(base.dtype).double()
    return ~(linalg.inversion_residual(exact, inverse).abs().amax((-2, -1)) <= RESIDUAL_BOUND)


def veto_outside(name: str, value: Tensor, bounds: Bounds, forced: Tensor) -> list[Veto]:
    """A soft veto where a value `(...)` is outside its bounds and not forced; none without bounds."""
    if bounds is None:
        return []
    outside = ~((value >= bounds[0]) & (value <= bounds[1]))
    return [Veto(f"{name} is outside {bounds}", outside & ~forced, soft=True)]


def hinge(value: Tensor, bounds: Bounds) -> Tensor:
    """Σ (value beyond its bounds)², `()`."""
    if bounds is None:
        return value.new_zeros(())
    return (F.relu(bounds[0] - value).square() + F.relu(value - bounds[1]).square()).sum()
