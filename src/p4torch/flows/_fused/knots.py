"""The bin of a rational-quadratic spline that a number falls into, from unconstrained parameters: an autograd node with
its reference."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from p4torch.linalg.reference import reference_gradients, reference_wanted, transformed

#: Least share of a bin of its uniform size, and least slope at a knot: float32 still inverts such splines.
LEAST_BIN, LEAST_SLOPE = 1e-2, 1e-3

#: Softplus of it and `LEAST_SLOPE` make a slope of 1.
UNIT_SLOPE = math.log(math.expm1(1 - LEAST_SLOPE))


def knots_reference(u: Tensor, raw: Tensor, bound: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """(left, width, bottom, height, first, last), each `(...)`: the bin of u, and the slopes at its two knots.

    u is `(...)`, within [-b, b] of `bound`, which broadcasts to it; raw is `(3k + 1, ...)`. The first k numbers give
    the widths of the k bins, the next k their heights (softmax; both add up to 2b), the others the slopes at all knots
    (softplus). u is a point on the axis of widths, or with `inverse` on that of heights.
    """
    bins = raw.shape[0] // 3
    widths, heights, slopes = raw.split([bins, bins, bins + 1])
    sides = [2 * bound * (LEAST_BIN / bins + (1 - LEAST_BIN) * part.softmax(0)) for part in (widths, heights)]
    ends = [size.cumsum(0) - bound for size in sides]
    index = (u >= ends[inverse][:-1]).sum(0, keepdim=True)
    slopes = LEAST_SLOPE + F.softplus(slopes)
    result = []
    for size, end in zip(sides, ends, strict=True):
        here = size.gather(0, index)
        result += [end.gather(0, index) - here, here]
    result += [slopes.gather(0, index), slopes.gather(0, index + 1)]
    return tuple(value.squeeze(0) for value in result)


def knots(u: Tensor, raw: Tensor, bound: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """`knots_reference`, fast."""
    if transformed():
        return knots_reference(u, raw, bound, inverse)
    return _Knots.apply(u, raw, bound, inverse)  # type: ignore[no-untyped-call]


class Located(NamedTuple):
    """The bins that numbers fall into, and what their gradient needs. Pairs are on the axes of widths and heights."""

    shares: Tensor  # of all bins, (2, k, ...)
    which: Tensor  # (1, ...)
    share: Tensor  # of the bin, (2, ...)
    start: Tensor  # the sum of the shares before it, (2, ...)
    starts: Tensor  # where it starts, (2, ...)
    sizes: Tensor  # its width and height, (2, ...)


def locate(u: Tensor, shape: Tensor, bound: Tensor | float, inverse: bool) -> Located:
    """Of u `(...)`, from the parameters of widths and heights `(2k, ...)`. With shares p = softmax(r), the sizes are
    s_j = 2b (m + (1 - K m) p_j), and the bin i starts at Σ_{j<i} s_j - b."""
    bins = shape.shape[0] // 2
    shares = shape.unflatten(0, (2, bins)).softmax(1)
    below = torch.ones(bins, bins, dtype=shape.dtype, device=shape.device).tril()
    ends = torch.matmul(below, shares.flatten(2)).view_as(shares)  # `cumsum` takes eight times as long here
    least, spread = LEAST_BIN / bins, 1 - LEAST_BIN
    # u >= 2b (least · j + spread · end_j) - b, for the inner knots j
    level = (u / bound + 1) / (2 * spread)
    ramp = torch.arange(1, bins, dtype=shape.dtype, device=shape.device) * (least / spread)
    index = (level >= ends[int(inverse), :-1] + ramp.view(-1, *[1] * u.dim())).sum(0, keepdim=True)
    both = index.expand(2, 1, *u.shape)
    share = shares.gather(1, both).squeeze(1)
    start = ends.gather(1, both).squeeze(1).sub_(share)
    starts = (spread * start).add_(index, alpha=least).mul_(2 * bound).sub_(bound)
    return Located(shares, index, share, start, starts, (spread * share).add_(least).mul_(2 * bound))


def locate_gradient(located: Located, at_start: Tensor, at_size: Tensor, bound: Tensor | float, out: Tensor) -> None:
    """The gradient with respect to the parameters `(2k, ...)`, into `out`, from those of starts and sizes `(2, ...)`:

    ∂r_j = p_j (G_j - Σ G p),   G_j = 2b (1 - K m) (∂start [j < i] + ∂size [j = i])
    """
    scale = 2 * (1 - LEAST_BIN) * bound
    at_start, at_size = at_start * scale, at_size * scale
    mean = (at_start * located.start).addcmul_(at_size, located.share)
    bins = located.shares.shape[1]
    steps = torch.arange(bins, device=out.device).view(-1, *[1] * (located.which.dim() - 1))
    sides = out.unflatten(0, (2, bins))
    torch.mul((steps < located.which).to(out.dtype), at_start.unsqueeze(1), out=sides)
    both = located.which.expand(2, *located.which.shape)
    sides.sub_(mean.unsqueeze(1)).scatter_add_(1, both, at_size.unsqueeze(1)).mul_(located.shares)


class _Knots(torch.autograd.Function):
    """Slopes are computed where they are asked for only."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, raw: Tensor, bound: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        bins = raw.shape[0] // 3
        located = locate(u, raw[: 2 * bins], bound, inverse)
        pair = torch.cat([located.which, located.which + 1]) + 2 * bins
        logits = raw.gather(0, pair)
        slopes = F.softplus(logits) + LEAST_SLOPE
        ctx.save_for_backward(u, raw, bound, pair, logits, *located)
        ctx.inverse = inverse
        (left, bottom), (width, height) = located.starts, located.sizes
        return left, width, bottom, height, slopes[0], slopes[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, raw, bound, pair, logits, *rest = ctx.saved_tensors
        if reference_wanted(*grads):

            def reference(raw: Tensor) -> tuple[Tensor, ...]:
                return knots_reference(u, raw, bound, ctx.inverse)

            return None, *reference_gradients(reference, (True,), (raw,), grads), None, None
        left, size, bottom, height, first, last = grads
        grad_raw = torch.empty_like(raw)
        bins = raw.shape[0] // 3
        locate_gradient(
            Located(*rest), torch.stack([left, bottom]), torch.stack([size, height]), bound, grad_raw[: 2 * bins]
        )
        grad_raw[2 * bins :].zero_()
        grad_raw.scatter_(0, pair, torch.stack([first, last]) * logits.sigmoid())
        return None, grad_raw, None, None
