"""Langevin moves: reversible with respect to exp(-u), on targets known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.generator.mala import MALA, Point, mala_move

#: Standard errors that a moment may be off by, at fixed seeds: by chance, one in 16,000 is.
ERRORS = 4.0


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def harmonic(x: Tensor) -> Tensor:
    """u of independent normal coordinates with standard deviations 1, 2, 0.5 and means 1, 0, -1."""
    mean, deviation = x.new_tensor([1.0, 0.0, -1.0]), x.new_tensor([1.0, 2.0, 0.5])
    return ((x - mean) / deviation).square().sum(-1) / 2


def test_langevin_keeps_the_target() -> None:
    """From independent points of it, with a step whose narrowest variance were a third too large without rejections."""
    chains, steps, draws = 20_000, 60, generator(1)
    mean, variance = torch.tensor([1.0, 0.0, -1.0]).double(), torch.tensor([1.0, 4.0, 0.25]).double()
    start = mean + variance.sqrt() * torch.randn(chains, 3, generator=draws, dtype=torch.float64)
    x, count = MALA(steps, 0.5).run(start, harmonic, draws)
    assert ((x.mean(0) - mean).abs() < ERRORS * (variance / chains).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < ERRORS * math.sqrt(2 / chains)).all()
    assert 0.5 < float(count.double().mean()) / steps < 0.99


def test_langevin_is_reversible() -> None:
    """exp(-u(x)) T(x → x') a(x → x') is symmetric, a found by bisection on the uniform number."""
    size = 0.7
    x, noise = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    there = Point.of(x, harmonic)
    new, _ = mala_move(there, harmonic, size, noise, torch.full((50,), -math.inf).double())
    back_noise = (x - new.x + size**2 / 2 * new.gradient) / size
    flow = -there.energy - noise.square().sum(-1) / 2 + log_acceptance(there, noise, size)
    flow_back = -new.energy - back_noise.square().sum(-1) / 2 + log_acceptance(new, back_noise, size)
    torch.testing.assert_close(flow, flow_back, rtol=0, atol=1e-9)


def log_acceptance(point: Point, noise: Tensor, size: float) -> Tensor:
    low, high = torch.full((len(noise),), -100.0).double(), torch.zeros(len(noise)).double()
    for _ in range(60):
        middle = (low + high) / 2
        accepted = mala_move(point, harmonic, size, noise, middle)[1]
        low, high = middle.where(accepted, low), high.where(accepted, middle)
    return low


def test_langevin_rejects_what_is_not_finite() -> None:
    def walled(x: Tensor) -> Tensor:
        return x.square().sum(-1) / 2 + torch.where(x[:, 0] > 0, 0.0, math.inf)

    x, count = MALA(50, 0.5).run(torch.full((200, 2), 0.1, dtype=torch.float64), walled, generator(0))
    assert (x[:, 0] > 0).all()
    assert (count < 50).all() and (count > 0).any()


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"step_size": 0.0}, {"step_size": math.nan}])
def test_bad_langevin(arguments: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=f"`{next(iter(arguments))}`"):
        MALA(**arguments)  # type: ignore[arg-type]
