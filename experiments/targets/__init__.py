"""Two-dimensional target densities with exact log-densities.

The toy distributions of density estimation, with the look of the FFJORD data sets, each written as a sampler
whose density is known: mixtures of Gaussians, uniform squares, curves and circles blurred by Gaussian noise,
and an area-preserving twist of a mixture. A `Target` *has* a `Law` (how to draw, and the log-density) and
states the two numbers that an experiment needs, the entropy and the maximum of the log-density.

Example:
    >>> target = get_target("two-moons")
    >>> x = target.sample(512, torch.Generator().manual_seed(0))
    >>> target.log_density(x).shape
    torch.Size([512])

Reference: W. Grathwohl et al., FFJORD: Free-form continuous dynamics for scalable reversible generative
models, ICLR 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.targets.laws import Checkerboard, Curve, Gaussians, Law, Pinwheel, Rings, polar
from p4torch.errors import ArgumentError

__all__ = ["TARGETS", "Target", "get_target"]

_CHUNK = 512  # points evaluated at once: the (points, nodes) table of a mixture stays below 6 MB


@dataclass(frozen=True, eq=False)
class Target:
    """A named law p on the plane.

    Attributes:
        name: key in `TARGETS`.
        law: sampler and log-density.
        entropy: H = −∫ p log p, in nats, to 1e-9.
        max_log_density: max over the plane of log p, to 1e-9 and rounded up: log p never exceeds it.
        extent: `(left, right, bottom, top)` of a plot; holds at least 99.9 % of the mass.
    """

    name: str
    law: Law = field(repr=False)
    entropy: float
    max_log_density: float
    extent: tuple[float, float, float, float] = (-4.0, 4.0, -4.0, 4.0)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `(count, 2)` independent points in float32: a pure function of the generator's state."""
        if count < 0:
            raise ArgumentError.of("count", "an integer >= 0", count)
        return self.law.sample(count, generator)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in float64 for points `(..., 2)`, −inf where p = 0.

        Closed forms, and for the curves (moons, spirals, swiss roll) a quadrature with a relative error of p
        below 1e-8 on [−6, 6]². Evaluated in chunks; differentiable in x, but for the checkerboard.
        """
        if x.ndim == 0 or x.shape[-1] != 2:
            raise ArgumentError.of("x", "of shape (..., 2)", tuple(x.shape))
        points = x.to(torch.float64).reshape(-1, 2)
        values = torch.cat([self.law.log_density(chunk) for chunk in torch.split(points, _CHUNK)])
        return values.reshape(x.shape[:-1])


def _moon(t: Tensor) -> Tensor:
    """Half circle of radius 2 about (−1, −1/2): the moons of scikit-learn, doubled and centred."""
    return polar(2.0, t) - torch.tensor([1.0, 0.5], dtype=t.dtype, device=t.device)


def _spiral(t: Tensor) -> Tensor:
    """Archimedean spiral (−t cos t, t sin t)/3."""
    return polar(-t / 3, -t)


def _roll(t: Tensor) -> Tensor:
    """Archimedean spiral (t cos t, t sin t)/5."""
    return polar(t / 5, t)


def _circle_centres(count: int, radius: float) -> Tensor:
    return polar(radius, torch.arange(count, dtype=torch.float64) * (math.tau / count))


def _grid_centres(side: int, spacing: float) -> Tensor:
    ticks = spacing * (torch.arange(side, dtype=torch.float64) - (side - 1) / 2)
    return torch.cartesian_prod(ticks, ticks)


_EIGHT = Gaussians(_circle_centres(8, radius=4 / math.sqrt(2)), std=0.5 / math.sqrt(2))
_MOONS = Curve(_moon, start=0.0, stop=math.pi, std=0.2, nodes=128, mirrored=True)
_SPIRALS = Curve(_spiral, start=0.0, stop=3 * math.pi, std=0.1, nodes=640, power=2, mirrored=True)
_RINGS = Rings((0.75, 1.5, 2.25, 3.0), std=0.08)
_ROLL = Curve(_roll, start=1.5 * math.pi, stop=4.5 * math.pi, std=0.2, nodes=352)
_GRID = Gaussians(_grid_centres(5, spacing=1.5), std=0.15)

_WIDE = (-4.5, 4.5, -4.5, 4.5)

# Decimals: trapezoidal sums on grids refined until they agree, and ascent from the grid's local maxima.
# The tests compute them afresh.
_ALL = (
    Target("eight-gaussians", _EIGHT, 2.831578361, -1.837877051, _WIDE),
    Target("checkerboard", Checkerboard(), math.log(32.0), -math.log(32.0), _WIDE),
    Target("two-moons", _MOONS, 2.393879196, -1.838005492),
    Target("two-spirals", _SPIRALS, 2.540617894, -2.009933513),
    Target("pinwheel", Pinwheel(), 2.320588485, -1.327051442, _WIDE),
    Target("rings", _RINGS, 2.623182770, -1.326830151),
    Target("swiss-roll", _ROLL, 2.669646174, -1.606258116),
    Target("25-gaussians", _GRID, 2.262510159, -1.262512921),
)

TARGETS: dict[str, Target] = {target.name: target for target in _ALL}


def get_target(name: str) -> Target:
    """Look up a target by name."""
    if name not in TARGETS:
        raise ArgumentError.of("name", f"one of {', '.join(TARGETS)}", repr(name))
    return TARGETS[name]
