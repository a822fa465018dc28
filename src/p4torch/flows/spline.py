"""Rational-quadratic spline couplings, on the line and on the circle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from p4torch._options import check_indices, check_integer
from p4torch.errors import ArgumentError
from p4torch.flows._fused.knots import UNIT_SLOPE, knots
from p4torch.flows.bijection import Coupling, check_event, check_features, check_hidden

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
    slope = height / width
    bend = first + last - 2 * slope
    if inverse:
        rise = safe - bottom
        a = height * (slope - first) + rise * bend
        b = height * first - rise * bend
        c = -slope * rise
        xi = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())
        value = xi * width + left
    else:
        xi = (safe - left) / width
        value = bottom + height * (slope * xi * xi + first * xi * (1 - xi)) / (slope + bend * xi * (1 - xi))
    across = xi * (1 - xi)
    rate = slope * slope * (last * xi * xi + 2 * slope * across + first * (1 - xi) * (1 - xi))
    logarithm = rate.log() - 2 * (slope + bend * across).log()
    logarithm = -logarithm if inverse else logarithm
    return torch.where(inside, value, u), torch.where(inside, logarithm, torch.zeros_like(u))


class SplineCoupling(Coupling):
    """Moves some features by monotone splines whose parameters a network computes from the others.

        on the line:    z = spline(x · eᵃ + b), the identity beyond ±`BOUND`
        on the circle:  z = spline(wrap(x + b)) on [-π, π), with equal slopes at both ends

    Both directions take angles beyond [-π, π), too, and wrap those that move. Angles enter the network as cosine and
    sine, so that the flow is continuous across the cut. The network's last layer starts at zero: the
    coupling starts as the identity.

    Args:
        features: n >= 2.
        moved: which of the features move, not all of them; the others are what the network sees.
        circular: which of all features are angles in [-π, π).
        hidden: widths of the network's hidden layers.
        bins: k of each spline.
        activation: of the network.

    Raises:
        ArgumentError: for features that do not exist, or repeat.

    Source: Durkan et al. (2019); Rezende et al. (2020), normalizing flows on tori and spheres.
    """

    structure = ("place", "angle", "kept")
    angle: Tensor
    kept: Tensor
    place: Tensor

    def __init__(
        self,
        features: int,
        moved: Sequence[int],
        circular: Sequence[int] = (),
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.features = check_features(features, least=2)
        moved, circular = check_indices("moved", moved, features), check_indices("circular", circular, features)
        if not 0 < len(moved) < features:
            raise ArgumentError.of("moved", f"1 to {features - 1} of {features} features", list(moved))
        hidden = check_hidden(hidden)
        angles = set(circular)
        kept = [index for index in range(features) if index not in set(moved)]
        self.bins = bins = check_integer("bins", bins, 2)
        line, circle = ([index for index in kept if (index in angles) is seen] for seen in (False, True))
        self._seen = [len(line), len(circle)]
        self.register_buffer("place", torch.tensor(list(moved)))
        self.register_buffer("angle", torch.tensor([[index in angles] for index in moved]))
        self.register_buffer("kept", torch.tensor(line + circle))
        widths = [len(line) + 2 * len(circle), *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), activation()]
        last = nn.Linear(widths[-1], len(moved) * (3 * bins + 1))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.hidden, self.last = nn.Sequential(*layers), last

    def moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, raw, scale, shift, bound = self._inputs(x)
        u = torch.where(self.angle, wrapped(u + shift), u * scale.exp() + shift)
        y, slope = rational_quadratic(u, raw, bound)
        y = torch.where(self.angle, _below_pi(y), y)
        return self._outputs(x, y), (slope + scale).mT.reshape(*x.shape[:-1], len(self.place))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y, raw, scale, shift, bound = self._inputs(z, "z")
        y = torch.where(self.angle, wrapped(y), y)
        u, slope = rational_quadratic(y, raw, bound, inverse=True)
        u = u - shift
        u = torch.where(self.angle, wrapped(u), u * (-scale).exp())
        return self._outputs(z, u), (slope - scale).sum(0).reshape(z.shape[:-1])

    def _inputs(self, x: Tensor, name: str = "x") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What moves, on columns `(m, P)`; the splines' raw parameters `(3k + 1, m, P)`, log-scale and shift `(m, P)`,
        and bounds `(m, 1)`. On columns all that follows is fast."""
        check_event(x, self.features, self.last.weight.dtype, name=name)
        points = x.reshape(-1, self.features)
        seen = points[:, self.kept]
        line, circle = seen.split(self._seen, dim=-1)
        hidden = self.hidden(torch.cat([line, circle.cos(), circle.sin()], -1))
        raw = torch.addmm(self.last.bias[:, None], self.last.weight, hidden.mT).unflatten(0, (3 * self.bins + 1, -1))
        shape, first, slopes, shift = raw.split([2 * self.bins, 1, self.bins - 1, 1])
        end = first * self.angle  # on the circle the slope at both ends, on the line those are 1
        raw = torch.cat([shape, torch.cat([end, slopes, end]) + UNIT_SLOPE])
        scale = (first * ~self.angle).tanh()
        bound = torch.where(self.angle, x.new_full((), math.pi), x.new_full((), BOUND))
        return points[:, self.place].mT, raw, scale[0], shift[0], bound

    def _outputs(self, x: Tensor, moved: Tensor) -> Tensor:
        return x.index_copy(-1, self.place, moved.mT.reshape(*x.shape[:-1], len(self.place)))

    def extra_repr(self) -> str:
        return f"features={self.features}, moved={self.place.tolist()}, bins={self.bins}"


def wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-π, π)."""
    return _below_pi(torch.remainder(angle + math.pi, 2 * math.pi) - math.pi)


def _below_pi(angle: Tensor) -> Tensor:
    """An angle in [-π, π] in [-π, π): rounding makes π of angles below it."""
    return torch.where(angle < math.pi, angle, angle - 2 * math.pi)
