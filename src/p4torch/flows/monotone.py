"""Monotone rational-quadratic splines of single numbers, on the line and on the circle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.flows._fused.knots import UNIT_SLOPE, knots
from p4torch.flows._fused.line import line
from p4torch.flows._fused.quadratic import log_slope, quadratic
from p4torch.linalg.reference import transformed

#: Beyond it a spline on the line is the identity: of standardised features, few lie there.
BOUND = 5.0


def rational_quadratic(u: Tensor, raw: Tensor, bound: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """The monotone rational-quadratic spline of [-b, b] onto itself, and the logarithm of its slope, `(...)` each.

        y = bottom + h (s ξ² + d₀ ξ(1-ξ)) / D,   D = s + (d₀ + d₁ - 2s) ξ(1-ξ),   s = h / w,   ξ = (u - left) / w
        dy/du = s² (d₁ ξ² + 2s ξ(1-ξ) + d₀ (1-ξ)²) / D²

    u `(...)` and raw `(3k + 1, ...)` as in `p4torch.flows._fused.knots`. Outside of [-b, b] it is the identity; both
    ends belong to the spline.

    Source: Gregory and Delbourgo (1982); Durkan, Bekasov, Murray and Papamakarios (2019), neural spline flows.
    """
    inside = u.abs() <= bound
    safe = torch.where(inside, u, torch.zeros_like(u))
    left, width, bottom, height, first, last = knots(safe.detach(), raw, bound, inverse)
    if inverse:
        slope = height / width
        bend = first + last - 2 * slope
        rise = safe - bottom
        a = height * (slope - first) + rise * bend
        b = height * first - rise * bend
        c = -slope * rise
        xi = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())
        value, logarithm = xi * width + left, -log_slope(xi, slope, first, last)
    else:
        value, logarithm = quadratic(safe, left, width, bottom, height, first, last)
    return torch.where(inside, value, u), torch.where(inside, logarithm, torch.zeros_like(u))


def monotone(u: Tensor, raw: Tensor, angle: Tensor, circular: bool = True) -> tuple[Tensor, Tensor]:
    """On the line spline(u · eᵃ + b), the identity beyond ±`BOUND`; on the circle spline(wrap(u + b)) on [-π, π), with
    equal slopes at both ends; and the logarithm of the slope. `(m, P)` each.

    Args:
        u: `(m, P)`. On such columns all that follows is fast.
        raw: `(3k + 1, m, P)`, or broadcasting to it: the identity at 0. Its rows are widths and heights of the k bins,
            tanh⁻¹ a or the slope at both ends, the other slopes, and b.
        angle: which of the m are on the circle, `(m, 1)`.
        circular: whether any is.
    """
    if not (circular or transformed()):
        return line(u, raw.expand(-1, *u.shape), BOUND, lambda u, raw: monotone(u, raw, angle))
    shape, scale, shift, bound = _parts(raw, angle)
    u = torch.where(angle, wrapped(u + shift), u * scale.exp() + shift)
    y, slope = rational_quadratic(u, shape.expand(-1, *u.shape), bound)
    return torch.where(angle, _below_pi(y), y), slope + scale


def monotone_inverse(y: Tensor, raw: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `monotone`, and the logarithm of its slope."""
    shape, scale, shift, bound = _parts(raw, angle)
    y = torch.where(angle, wrapped(y), y)
    u, slope = rational_quadratic(y, shape.expand(-1, *y.shape), bound, inverse=True)
    u = u - shift
    return torch.where(angle, wrapped(u), u * (-scale).exp()), slope - scale


def _parts(raw: Tensor, angle: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `rational_quadratic` takes, log-scale and shift, and bounds `(m, 1)`."""
    bins = raw.shape[0] // 3
    shape, first, slopes, shift = raw.split([2 * bins, 1, bins - 1, 1])
    end = first * angle  # on the circle the slope at both ends, on the line those are 1
    bound = torch.where(angle, raw.new_full((), math.pi), raw.new_full((), BOUND))
    scale = (first * ~angle).tanh()
    return torch.cat([shape, torch.cat([end, slopes, end]) + UNIT_SLOPE]), scale[0], shift[0], bound


def check_angles(x: Tensor, circular: Tensor) -> None:
    """Raises ArgumentError for angles beyond [-π, π): points `(..., n)`, and which features are angles."""
    angles = x[..., circular]
    outside = (angles < -math.pi) | (angles > math.pi)
    if bool(outside.any()):
        where = tuple(int(index) for index in outside.nonzero()[0])
        expected = "of angles in [-π, π) (p4torch.flows.wrapped brings them there; degrees need torch.deg2rad first)"
        raise ArgumentError.of("x", expected, f"{float(angles[where]):g} for feature {int(circular[where[-1]])}")


def wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-π, π)."""
    return _below_pi(torch.remainder(angle + math.pi, 2 * math.pi) - math.pi)


def _below_pi(angle: Tensor) -> Tensor:
    """An angle in [-π, π] in [-π, π): rounding makes π of angles below it."""
    return torch.where(angle < math.pi, angle, angle - 2 * math.pi)
