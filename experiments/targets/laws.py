"""Laws on the plane: how to draw, and the exact log-density.

Samples are float32, on the generator's device; log-densities are float64, on the device of the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Checkerboard", "Curve", "Gaussians", "Law", "Pinwheel", "Rings", "polar"]


class Law(Protocol):
    """A distribution on the plane: a sampler and its exact log-density."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `(count, 2)` points in float32."""

    def log_density(self, x: Tensor) -> Tensor:
        """Map float64 points `(m, 2)` to log-densities `(m,)`."""


def _normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 2, generator=generator, device=generator.device)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _index(bound: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(bound, (count,), generator=generator, device=generator.device)


def polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    """The points (r cos φ, r sin φ), `(..., 2)`."""
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """R(φ) x, counter-clockwise."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], dim=-1)


def _mixture_log_density(x: Tensor, centres: Tensor, weights: Tensor, std: float) -> Tensor:
    """log Σⱼ wⱼ N(x; cⱼ, σ²I), the square expanded so that the table of exponents is one matrix product."""
    centres, weights, precision = centres.to(x.device), weights.to(x.device), std**-2
    offset = weights.log() - 0.5 * precision * centres.square().sum(dim=-1)
    exponents = torch.addmm(offset, x, precision * centres.mT)
    # `exp` is slow where it underflows: raise what is negligible to e^−100 of the largest term.
    exponents = exponents.clamp(min=exponents.detach().amax(dim=-1, keepdim=True) - 100)
    scale = math.log(precision / math.tau)
    return exponents.logsumexp(dim=-1) - 0.5 * precision * x.square().sum(dim=-1) + scale


def _gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights on [0, 1], from the Jacobi matrix (Golub and Welsch, 1969)."""
    k = torch.arange(1, count, dtype=torch.float64)
    off_diagonal = torch.diag(k / (4 * k.square() - 1).sqrt(), 1)
    nodes, vectors = torch.linalg.eigh(off_diagonal + off_diagonal.mT)
    return (nodes + 1) / 2, vectors[0].square()


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Equal mixture of isotropic Gaussians: p(x) = (1/K) Σₖ N(x; cₖ, σ²I)."""

    centres: Tensor
    std: float

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """cₖ + σε with k uniform."""
        centres = self.centres.to(generator.device, torch.float32)
        return centres[_index(len(centres), count, generator)] + self.std * _normal(count, generator)

    def log_density(self, x: Tensor) -> Tensor:
        """Closed form."""
        weights = torch.full((len(self.centres),), 1 / len(self.centres), dtype=torch.float64)
        return _mixture_log_density(x, self.centres, weights, self.std)


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve blurred by Gaussian noise: p(x) = ∫ p(t) N(x; c(t), σ²I) dt.

    The parameter is t = a + (b − a) v, where the fraction v in [0, 1] has density q v^(q−1): uniform for
    q = 1, proportional to v for q = 2. With `mirrored`, −c(t) is as likely as c(t). The integral is a
    Gauss–Legendre sum over `nodes` values of v, to be chosen fine against σ.
    """

    point: Callable[[Tensor], Tensor]
    start: float
    stop: float
    std: float
    nodes: int
    power: int = 1
    mirrored: bool = False

    def _at(self, fraction: Tensor) -> Tensor:
        return self.point(self.start + (self.stop - self.start) * fraction)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """±c(t) + σε with v = u^(1/q)."""
        x = self._at(_uniform(count, generator) ** (1 / self.power))
        if self.mirrored:
            x = x * (2 * _index(2, count, generator) - 1).unsqueeze(-1)
        return x + self.std * _normal(count, generator)

    @cached_property
    def _mixture(self) -> tuple[Tensor, Tensor]:
        """Centres and weights of the mixture over the nodes."""
        fraction, weights = _gauss_legendre(self.nodes)
        centres, weights = self._at(fraction), weights * self.power * fraction ** (self.power - 1)
        if self.mirrored:
            return torch.cat([centres, -centres]), torch.cat([weights, weights]) / 2
        return centres, weights

    def log_density(self, x: Tensor) -> Tensor:
        """Exact to the quadrature."""
        return _mixture_log_density(x, *self._mixture, self.std)


@dataclass(frozen=True, eq=False)
class Checkerboard:
    """Uniform on the eight squares ⌊x₁/2⌋ + ⌊x₂/2⌋ even of [−4, 4)²: p = 1/32 there and 0 elsewhere."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """x₁ uniform, then x₂ on the two squares of that column.

        On the CPU uniforms are multiples of 2⁻²⁴: each step is exact in float32, no point crosses an edge.
        """
        first, height = 8 * _uniform(count, generator) - 4, 4 * _uniform(count, generator)
        corner = 2 * (first / 2).floor().remainder(2) + 2 * (height / 2).floor() - 4
        return torch.stack([first, corner + height], dim=-1)

    def log_density(self, x: Tensor) -> Tensor:
        """Closed form."""
        inside = ((x >= -4) & (x < 4)).all(dim=-1) & ((x / 2).floor().sum(dim=-1).remainder(2) == 0)
        return torch.full_like(x[:, 0], -math.log(32.0)).masked_fill(~inside, -math.inf)


@dataclass(frozen=True, eq=False)
class Pinwheel:
    """Gaussian blades, twisted: x = 2 R(−θ(|z|) − 2πk/K) z, z ~ N((1, 0), diag(s₁², s₂²)), k uniform.

    θ(r) = λeʳ depends on the radius alone, which a rotation keeps: the twist has unit Jacobian, and
    R(θ(|x|/2)) undoes it. So p(x) = (1/4K) Σₖ N(R(θ(|x|/2) + 2πk/K) x/2; (1, 0), diag(s₁², s₂²)). The data
    sets in use turn by λ exp(z₁) instead, which looks the same, but has neither unit Jacobian nor an inverse
    in closed form. (θ stops growing at r = 20, far outside the blades, lest it overflow.)
    """

    arms: int = 5
    rate: float = 0.25
    stds: tuple[float, float] = (0.3, 0.1)

    def _twist(self, radius: Tensor, arm: Tensor) -> Tensor:
        return self.rate * radius.clamp(max=20).exp() + arm * (math.tau / self.arms)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Twist of the Gaussian blade."""
        arm = _index(self.arms, count, generator)
        z = _normal(count, generator) * torch.tensor(self.stds, device=generator.device)
        z = torch.stack([z[:, 0] + 1, z[:, 1]], dim=-1)
        return 2 * _rotate(z, -self._twist(torch.linalg.vector_norm(z, dim=-1), arm))

    def log_density(self, x: Tensor) -> Tensor:
        """Closed form."""
        half = (x / 2).unsqueeze(-2)
        angle = self._twist(torch.linalg.vector_norm(half, dim=-1), torch.arange(self.arms, device=x.device))
        z = _rotate(half, angle)
        radial, tangential = self.stds
        exponents = -0.5 * (((z[..., 0] - 1) / radial).square() + (z[..., 1] / tangential).square())
        return exponents.logsumexp(dim=-1) - math.log(4 * self.arms * math.tau * radial * tangential)


@dataclass(frozen=True, eq=False)
class Rings:
    """Equal mixture of circles blurred by isotropic Gaussian noise: |x| has Rice's law.

    p(x) = (1/K) Σₖ exp(−(|x| − ρₖ)²/2σ²) Ĩ₀(|x|ρₖ/σ²)/(2πσ²), where Ĩ₀(z) = e^(−z) I₀(z), the scaled Bessel
    function.
    """

    radii: tuple[float, ...]
    std: float

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """ρₖ (cos φ, sin φ) + σε with k and φ uniform."""
        radii = torch.tensor(self.radii, device=generator.device)[_index(len(self.radii), count, generator)]
        return polar(radii, math.tau * _uniform(count, generator)) + self.std * _normal(count, generator)

    def log_density(self, x: Tensor) -> Tensor:
        """Closed form."""
        radius: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        radii = torch.tensor(self.radii, dtype=x.dtype, device=x.device)
        bessel: Tensor = torch.special.i0e(radius * radii / self.std**2)
        exponents = bessel.log() - 0.5 * ((radius - radii) / self.std).square()
        return exponents.logsumexp(dim=-1) - math.log(len(self.radii) * math.tau * self.std**2)
