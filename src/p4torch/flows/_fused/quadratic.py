"""A rational-quadratic function inside one bin of a spline: an autograd node with its reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch.linalg.reference import reference_gradients, reference_wanted, transformed


def quadratic_reference(
    u: Tensor, left: Tensor, width: Tensor, bottom: Tensor, height: Tensor, first: Tensor, last: Tensor
) -> tuple[Tensor, Tensor]:
    """The value at u, and the logarithm of the slope there, `(...)` each, of a bin with these slopes at its knots.

    y = bottom + h (s ξ² + d₀ ξ(1-ξ)) / D,   D = s + (d₀ + d₁ - 2s) ξ(1-ξ),   s = h / w,   ξ = (u - left) / w
    """
    slope = height / width
    bend = first + last - 2 * slope
    xi = (u - left) / width
    value = bottom + height * (slope * xi * xi + first * xi * (1 - xi)) / (slope + bend * xi * (1 - xi))
    return value, log_slope(xi, slope, first, last)


def log_slope(xi: Tensor, slope: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """log dy/du = log s² Q / D²,   Q = d₁ ξ² + 2s ξ(1-ξ) + d₀ (1-ξ)²."""
    across = xi * (1 - xi)
    rate = slope * slope * (last * xi * xi + 2 * slope * across + first * (1 - xi) * (1 - xi))
    return rate.log() - 2 * (slope + (first + last - 2 * slope) * across).log()


def quadratic(u: Tensor, *bin: Tensor) -> tuple[Tensor, Tensor]:
    """`quadratic_reference`, fast."""
    if transformed():
        return quadratic_reference(u, *bin)
    return _Quadratic.apply(u, *bin)  # type: ignore[no-untyped-call]


def values(u: Tensor, *bin: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The value, the logarithm of the slope, and what `gradients` needs, with N = s ξ² + d₀ t and t = ξ(1-ξ)."""
    left, width, bottom, height, first, last = bin
    slope = height / width
    xi = (u - left).div_(width)
    rest = 1 - xi
    across, square, rest_square = xi * rest, xi * xi, rest * rest
    bend = torch.sub(first + last, slope, alpha=2)
    below = torch.addcmul(slope, bend, across)
    share = (slope * square).addcmul_(first, across).div_(below)
    rate = (last * square).addcmul_(slope, across, value=2).addcmul_(first, rest_square)
    logarithm = (slope * slope).mul_(rate).log_().sub_(below.log(), alpha=2)
    kept = width, height, first, last, slope, xi, rest, across, square, rest_square, bend, below, share, rate
    return torch.addcmul(bottom, height, share), logarithm, kept


def gradients(kept: tuple[Tensor, ...], at_value: Tensor, at_log: Tensor) -> tuple[Tensor, ...]:
    """With respect to u and the bin. With L = log dy/du = 2 log s + log Q - 2 log D:

    ∂y/∂ξ  = w s² Q / D²                    ∂L/∂ξ  = ∂_ξ Q / Q - 2 ∂_ξ D / D
    ∂y/∂s  = h (ξ² - (1-2t) N/D) / D        ∂L/∂s  = 2/s + 2t/Q - 2(1-2t)/D
    ∂y/∂d₀ = h t (1 - N/D) / D              ∂L/∂d₀ = (1-ξ)²/Q - 2t/D
    ∂y/∂d₁ = -h t N/D²                      ∂L/∂d₁ = ξ²/Q - 2t/D
    """
    width, height, first, last, slope, xi, rest, across, square, rest_square, bend, below, share, rate = kept
    slant, straight = rest - xi, torch.add(square, rest_square)  # 1 - 2ξ, 1 - 2t
    per_rate, per_below = at_log / rate, at_log / below
    lift = (at_value * height).div_(below)
    # ∂Q/∂ξ = 2 (d₁ ξ + s (1-2ξ) - d₀ (1-ξ)), ∂D/∂ξ = (d₀ + d₁ - 2s) (1-2ξ)
    rise = (last * xi).addcmul_(slope, slant).addcmul_(first, rest, value=-1).mul_(per_rate)
    turn = rise.addcmul_(bend * slant, per_below, value=-1).mul_(2)
    at_u = turn.div_(width).addcmul_((slope * slope).mul_(rate).div_(below).div_(below), at_value)
    shared = torch.addcmul(per_below, lift, share, value=0.5).mul_(2)  # of D, which s, d₀ and d₁ change
    at_last = (per_rate * square).addcmul_(shared, across, value=-1)
    at_first = (per_rate * rest_square).add_(lift * across).addcmul_(shared, across, value=-1)
    at_slope = (lift * square).addcmul_(shared, straight, value=-1).addcmul_(per_rate, across, value=2)
    at_slope = at_slope.add_(at_log / slope, alpha=2).div_(width)
    at_width = at_u.neg().mul_(xi).addcmul_(at_slope, slope, value=-1)
    at_height = torch.addcmul(at_slope, at_value, share)
    return at_u, -at_u, at_width, at_value, at_height, at_first, at_last


class _Quadratic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, *bin: Tensor) -> tuple[Tensor, Tensor]:
        value, logarithm, kept = values(u, *bin)
        ctx.save_for_backward(u, *bin, *kept)
        return value, logarithm

    @staticmethod
    def backward(ctx: Any, at_value: Tensor, at_log: Tensor) -> tuple[Tensor | None, ...]:
        inputs, kept = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        if reference_wanted(at_value, at_log):
            needed = ctx.needs_input_grad
            return reference_gradients(quadratic_reference, needed, inputs, (at_value, at_log))
        return gradients(kept, at_value, at_log)
