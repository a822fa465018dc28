"""The bin of a rational-quadratic spline that a number falls into, from unconstrained parameters: an autograd node with
its reference."""

from __future__ import annotations

import math
from typing import Any

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


class _Knots(torch.autograd.Function):
    """With shares p = softmax(r), sizes s_j = 2b (m + (1 - K m) p_j) and the bin i: left = Σ_{j<i} s_j - b, so that

        ∂r_j = p_j (G_j - Σ G p),   G_j = 2b (1 - K m) (∂left [j < i] + ∂size [j = i]).

    Slopes are computed where they are asked for only.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, raw: Tensor, bound: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        bins = raw.shape[0] // 3
        shares = raw[: 2 * bins].unflatten(0, (2, bins)).softmax(1)
        ends = shares.clone()
        for step in range(1, bins):  # `cumsum` takes eight times as long here
            ends[:, step] += ends[:, step - 1]
        least, spread = LEAST_BIN / bins, 1 - LEAST_BIN
        # u >= 2b (least · j + spread · end_j) - b, for the inner knots j
        level = (u / bound + 1) / (2 * spread)
        ramp = torch.arange(1, bins, dtype=raw.dtype, device=raw.device) * (least / spread)
        index = (level >= ends[int(inverse), :-1] + ramp.view(-1, *[1] * u.dim())).sum(0, keepdim=True)
        both = index.expand(2, 1, *u.shape)
        share = shares.gather(1, both).squeeze(1)
        start = ends.gather(1, both).squeeze(1) - share
        sizes = 2 * bound * (least + spread * share)
        starts = 2 * bound * (spread * start + least * index.to(raw.dtype)) - bound
        pair = torch.cat([index, index + 1]) + 2 * bins
        logits = raw.gather(0, pair)
        slopes = F.softplus(logits) + LEAST_SLOPE
        ctx.save_for_backward(u, raw, bound, shares, share, start, pair, logits)
        ctx.inverse = inverse
        return starts[0], sizes[0], starts[1], sizes[1], slopes[0], slopes[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, raw, bound, shares, share, start, pair, logits = ctx.saved_tensors
        if reference_wanted(*grads):

            def reference(raw: Tensor) -> tuple[Tensor, ...]:
                return knots_reference(u, raw, bound, ctx.inverse)

            return None, *reference_gradients(reference, (True,), (raw,), grads), None, None
        bins = shares.shape[1]
        left, size, bottom, height, first, last = grads
        scale = 2 * (1 - LEAST_BIN) * bound
        at_start, at_size = torch.stack([left, bottom]) * scale, torch.stack([size, height]) * scale
        mean = at_start * start + at_size * share
        index = pair[:1] - 2 * bins
        steps = torch.arange(bins, device=raw.device).view(-1, *[1] * u.dim())
        grad_raw = torch.empty_like(raw)
        sides = grad_raw[: 2 * bins].unflatten(0, (2, bins))
        torch.mul((steps < index).to(raw.dtype), at_start.unsqueeze(1), out=sides)
        sides.sub_(mean.unsqueeze(1)).scatter_add_(1, index.expand(2, 1, *u.shape), at_size.unsqueeze(1)).mul_(shares)
        grad_raw[2 * bins :].zero_()
        grad_raw.scatter_(0, pair, torch.stack([first, last]) * logits.sigmoid())
        return None, grad_raw, None, None
