"""A monotone spline on the line with its shift and scale, as one autograd node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from p4torch.flows._fused.knots import LEAST_SLOPE, UNIT_SLOPE, Located, locate, locate_gradient
from p4torch.flows._fused.quadratic import gradients, values
from p4torch.linalg.reference import reference_gradients, reference_wanted

Reference = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def line(u: Tensor, raw: Tensor, bound: float, reference: Reference) -> tuple[Tensor, Tensor]:
    """`monotone` of u `(m, P)` and raw `(3k + 1, m, P)`, of no angles, which is the reference."""
    return _Line.apply(u, raw, bound, reference)  # type: ignore[no-untyped-call]


class _Line(torch.autograd.Function):
    """y = spline(v), v = u eᵃ + b, and log dy/du = log spline'(v) + a, with a = tanh r_2k and b = r_3k."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, raw: Tensor, bound: float, reference: Reference) -> tuple[Tensor, Tensor]:
        bins = raw.shape[0] // 3
        log_scale = raw[2 * bins].tanh()
        scaled = log_scale.exp().mul_(u)
        moved = scaled + raw[3 * bins]
        inside = moved.abs() <= bound
        safe = torch.where(inside, moved, 0.0)
        located = locate(safe, raw[: 2 * bins], bound, False)
        pair = torch.cat([located.which, located.which + 1])
        inner = (pair > 0) & (pair < bins)  # at both ends the slope is 1
        logits = raw.gather(0, pair + 2 * bins).masked_fill_(~inner, 0.0).add_(UNIT_SLOPE)
        (left, bottom), (width, height), (first, last) = (
            located.starts, located.sizes, F.softplus(logits).add_(LEAST_SLOPE)
        )  # fmt: skip
        value, slope, kept = values(safe, left, width, bottom, height, first, last)
        ctx.save_for_backward(u, raw, log_scale, scaled, inside, pair, inner, logits, *located, *kept)
        ctx.bound, ctx.reference = bound, reference
        return torch.where(inside, value, moved), torch.where(inside, slope, 0.0).add_(log_scale)

    @staticmethod
    def backward(ctx: Any, at_value: Tensor, at_log: Tensor) -> tuple[Tensor | None, ...]:
        u, raw, log_scale, scaled, inside, pair, inner, logits, *rest = ctx.saved_tensors
        if reference_wanted(at_value, at_log):
            needed = ctx.needs_input_grad[:2]
            return *reference_gradients(ctx.reference, needed, (u, raw), (at_value, at_log)), None, None
        located, kept = Located(*rest[: len(Located._fields)]), tuple(rest[len(Located._fields) :])
        bins = raw.shape[0] // 3
        at_moved, left, width, bottom, height, first, last = gradients(kept, at_value * inside, at_log * inside)
        at_moved = torch.where(inside, at_moved, at_value)
        grad_raw = torch.empty_like(raw)
        shape, slopes = grad_raw[: 2 * bins], grad_raw[2 * bins :]
        locate_gradient(located, torch.stack([left, bottom]), torch.stack([width, height]), ctx.bound, shape)
        slopes.zero_()
        slopes.scatter_add_(0, pair, torch.stack([first, last]).mul_(logits.sigmoid()).mul_(inner))
        slopes[0] = (at_moved * scaled).add_(at_log).mul_(1 - log_scale * log_scale)
        slopes[bins] = at_moved
        return at_moved * log_scale.exp(), grad_raw, None, None
