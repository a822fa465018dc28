"""The Metropolis-adjusted Langevin algorithm: steps downhill with noise, accepted so that the target stays exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from p4torch._options import check_integer
from p4torch.errors import ArgumentError


@dataclass(frozen=True)
class MALA:
    """So many moves in a row, x' = x - (s²/2) ∇u(x) + s ξ, with s = `step_size` in nm.

    Small steps are accepted nearly always and lead nowhere; about 0.57 accepted is best for many coordinates. The bonds
    set the scale: alanine dipeptide at 300 K has that between 0.0015 and 0.002 nm.

    Raises:
        ArgumentError: no steps, or a size that is not positive and finite.

    Source: Roberts and Rosenthal, J. R. Stat. Soc. B 60 (1998) 255.
    """

    steps: int = 10
    step_size: float = 0.0015

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, 1)
        if not 0 < self.step_size < math.inf:
            raise ArgumentError.of("step_size", "positive and finite, in nm", self.step_size)

    def run(self, x: Tensor, energy: Callable[[Tensor], Tensor], draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """(points x `(n, ...)` after the moves, how many moves of each were accepted `(n,)`); draws is a source of
        random numbers."""
        point = Point.of(x, energy)
        count = torch.zeros(len(x), dtype=torch.long)
        for _ in range(self.steps):
            noise = torch.randn(x.shape, generator=draws, dtype=x.dtype)
            log_uniform = torch.rand(len(x), generator=draws, dtype=x.dtype).log()
            point, accepted = mala_move(point, energy, self.step_size, noise, log_uniform)
            count += accepted
        return point.x, count


class Point(NamedTuple):
    """Points `(n, ...)`, their energies in kT `(n,)` and gradients `(n, ...)`."""

    x: Tensor
    energy: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, x: Tensor, energy: Callable[[Tensor], Tensor]) -> Point:
        """Compute what belongs to x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = energy(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return cls(x.detach(), value.detach(), gradient)


def mala_move(
    point: Point, energy: Callable[[Tensor], Tensor], step_size: float, noise: Tensor, log_uniform: Tensor
) -> tuple[Point, Tensor]:
    """(points after one move, which were accepted `(n,)`), reversible with respect to exp(-u(x)) dx.

    The move back needs the noise ξ' = (x - x' + (s²/2) ∇u(x')) / s, so that accepted is
    log(uniform) < u(x) - u(x') + (|ξ|² - |ξ'|²) / 2: never, where an energy or a gradient is not finite.
    """
    drift = step_size**2 / 2
    new = Point.of(point.x - drift * point.gradient + step_size * noise, energy)
    back = (point.x - new.x + drift * new.gradient) / step_size
    log_ratio = point.energy - new.energy + (noise.square() - back.square()).flatten(1).sum(-1) / 2
    accepted = log_uniform < log_ratio  # false for NaN
    pairs = zip(point, new, strict=True)
    return Point(*(after.where(_like(accepted, after), before) for before, after in pairs)), accepted


def _like(mask: Tensor, values: Tensor) -> Tensor:
    return mask.reshape(-1, *(1 for _ in values.shape[1:]))
