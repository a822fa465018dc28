"""Options and bases that an invertible perturbation refuses, and determinants out of bounds."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from p4torch import linalg
from p4torch.errors import ArgumentError
from p4torch.merging import Veto

Bounds = tuple[float, float] | None

#: The paper's bounds of log|det R_B(A) / det A|, and of log|det R_B(A)| for n <= 64. The latter is a sum over n
#: singular values: beyond, its bounds grow with n.
CHANGE_BOUNDS, LOGABSDET_BOUNDS, LOGABSDET_SIZE = (-6.0, 15.5), (-2.5, 15.5), 64

FORMS = ("additive", "exponential")

#: An inverse X with max|A X - I| above it is of no use.
RESIDUAL_BOUND = 0.1


def chosen_bounds(
    change: Bounds | Literal["paper"], logabsdet: Bounds | Literal["paper"], n: int
) -> tuple[Bounds, Bounds]:
    """Both bounds as numbers, for matrices `(..., n, n)`."""
    factor = max(1.0, n / LOGABSDET_SIZE)
    grown = (LOGABSDET_BOUNDS[0] * factor, LOGABSDET_BOUNDS[1] * factor)
    return CHANGE_BOUNDS if change == "paper" else change, grown if logabsdet == "paper" else logabsdet


def check_options(form: str, order: int, change_bounds: Bounds, logabsdet_bounds: Bounds) -> None:
    """Raise ArgumentError for options of `Invertible` that mean nothing."""
    if form not in FORMS:
        raise ArgumentError.of("form", f"one of {', '.join(FORMS)}", repr(form))
    if order not in (2, 3, 7):
        raise ArgumentError.of("order", "2, 3 or 7", order)
    for name, bounds in (("change_bounds", change_bounds), ("logabsdet_bounds", logabsdet_bounds)):
        if bounds is not None and not (isinstance(bounds, tuple) and len(bounds) == 2 and bounds[0] < 0 < bounds[1]):
            raise ArgumentError.of(name, "None, 'paper' or (below 0, above 0)", repr(bounds))


def check_number(name: str, value: float, least: float) -> None:
    """Raise ArgumentError for anything but a finite number from `least` on."""
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= least):
        raise ArgumentError.of(name, "a positive number" if least else "a number >= 0", repr(value))


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
