"""The bin of a rational-quadratic spline that a number falls into, from unconstrained parameters: an autograd node with
its readable twin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from p4torch.twins import transformed, twin_gradients

#: Least share of a bin of its uniform size, and least slope at a knot: float32 still inverts such splines.
LEAST_BIN, LEAST_SLOPE = 1e-2, 1e-3

#: Softplus of it and `LEAST_SLOPE` make a slope of 1.
UNIT_SLOPE = 0.541324854612918 - 1e-3 * 1.5819767068693265


def readable_knots(u: Tensor, raw: Tensor, bound: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """(left, width, bottom, height, first, last), each `(...)`: the bin of u, and the slopes at its two knots.

    u is `(...)`, within [-b, b] of `bound`, which broadcasts to it; raw is `(..., 3k + 1)`. The first k numbers give the
    widths of the k bins, the next k their heights (softmax; both add up to 2b), the others the slopes at all knots
    (softplus). u is a point on the axis of widths, or with `inverse` on that of heights.
    """
    bins = raw.shape[-1] // 3
    widths, heights, slopes = raw.split([bins, bins, bins + 1], dim=-1)
    sides = [_sizes(part, bound) for part in (widths, heights)]
    ends = [size.cumsum(-1) - bound[..., None] for size in sides]
    index = (u[..., None] >= ends[inverse][..., :-1]).sum(-1, keepdim=True)
    slopes = LEAST_SLOPE + F.softplus(slopes)
    found = []
    for size, end in zip(sides, ends, strict=True):
        here = size.gather(-1, index)
        found += [end.gather(-1, index) - here, here]
    found += [slopes.gather(-1, index), slopes.gather(-1, index + 1)]
    return tuple(value.squeeze(-1) for value in found)


def _sizes(raw: Tensor, bound: Tensor) -> Tensor:
    bins = raw.shape[-1]
    return 2 * bound[..., None] * (LEAST_BIN / bins + (1 - LEAST_BIN) * raw.softmax(-1))


def knots(u: Tensor, raw: Tensor, bound: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """`readable_knots`, fast."""
    if transformed():
        return readable_knots(u, raw, bound, inverse)
    return _Knots.apply(u, raw, bound, inverse)  # type: ignore[no-untyped-call]


class _Knots(torch.autograd.Function):
    """With shares p = softmax(r), sizes s_j = b' (m + (1 - K m) p_j) and the bin i: left = Σ_{j<i} s_j - b, so that

        ∂r_j = p_j (G_j - Σ G p),   G_j = 2b (1 - m') (∂left [j < i] + ∂size [j = i]).

    Slopes are computed where they are asked for only.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, raw: Tensor, bound: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        bins = raw.shape[-1] // 3
        shares = raw[..., : 2 * bins].unflatten(-1, (2, bins)).softmax(-1)
        ends = shares.cumsum(-1)
        uniform = LEAST_BIN / bins * torch.arange(1, bins + 1, dtype=raw.dtype, device=raw.device)
        scaled = ends[..., int(inverse), :-1] * (1 - LEAST_BIN) + uniform[:-1]
        index = ((u / bound + 1).mul_(0.5)[..., None] >= scaled).sum(-1, keepdim=True)
        both = index[..., None, :].expand(*index.shape[:-1], 2, 1)
        share = shares.gather(-1, both).squeeze(-1)
        start = ends.gather(-1, both).squeeze(-1) - share
        size = 2 * bound[..., None]
        sizes = size * (LEAST_BIN / bins + (1 - LEAST_BIN) * share)
        starts = size * ((1 - LEAST_BIN) * start + LEAST_BIN / bins * index.to(raw.dtype)) - bound[..., None]
        pair = torch.cat([index, index + 1], -1) + 2 * bins
        logits = raw.gather(-1, pair)
        slopes = F.softplus(logits) + LEAST_SLOPE
        ctx.save_for_backward(u, raw, bound, shares, share, start, index, logits)
        ctx.inverse = inverse
        return (starts[..., 0], sizes[..., 0], starts[..., 1], sizes[..., 1], slopes[..., 0], slopes[..., 1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, raw, bound, shares, share, start, index, logits = ctx.saved_tensors
        if torch.is_grad_enabled():
            twin = lambda *inputs: readable_knots(*inputs, ctx.inverse)
            return (*twin_gradients(twin, (False, True, False), (u, raw, bound), grads), None)
        bins = shares.shape[-1]
        left, size, bottom, height, first, last = grads
        scale = 2 * (1 - LEAST_BIN) * bound[..., None]
        at_start = torch.stack([left, bottom], -1) * scale
        at_size = torch.stack([size, height], -1) * scale
        mean = at_start * start + at_size * share
        found = torch.zeros_like(raw)
        before = torch.arange(bins, device=raw.device) < index[..., None, :]
        sides = (before * at_start[..., None]).sub_(mean[..., None])
        both = index[..., None, :].expand(*index.shape[:-1], 2, 1)
        sides.scatter_add_(-1, both, at_size[..., None])
        torch.mul(sides, shares, out=found[..., : 2 * bins].unflatten(-1, (2, bins)))
        pair = torch.cat([index, index + 1], -1) + 2 * bins
        found.scatter_(-1, pair, torch.stack([first, last], -1) * logits.sigmoid())
        return None, found, None, None
