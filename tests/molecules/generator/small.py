"""Small generators of alanine dipeptide, and frames that are quick to make."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tests.molecules.systems import system_of
from torch import Tensor

from p4torch.molecules import BoltzmannGenerator, MixedCoordinates, MolecularSystem
from p4torch.molecules.generator.architectures import affine, default_zmatrix, seeded, spline
from p4torch.molecules.generator.encoded import Encoded
from p4torch.molecules.generator.schedule import Phase, Schedule
from p4torch.molecules.generator.training import Training

COUPLINGS = 2

#: Chunks of one batch (2560 points) and a line of the log every 50 steps; chunks of 5 batches of both terms.
PHASES = (Phase(60, frames=2560), Phase(12, frames=256, samples=256, learning_rate=1e-4))
#: Chunks of 10 and of 5 batches: splines take longer.
FEWER = (Phase(20), Phase(10, frames=256, samples=256, learning_rate=1e-4))


@cache
def frames(count: int = 300, seed: int = 0, noise: float = 0.003) -> Tensor:
    """The molecule's positions with normal noise (nm), float64 `(frames, atoms, 3)`; not to be changed."""
    system = system_of()
    draw = torch.randn(count, system.atoms, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return system.positions + noise * draw


def small(model: str = "p4inv", system: MolecularSystem | None = None, seed: int = 0) -> BoltzmannGenerator:
    """A generator with few couplings: rnvp, p4inv or spline-p4inv."""
    system = system or system_of()
    circle = model.startswith("spline")
    coordinates = MixedCoordinates(default_zmatrix(system), frames(), torsions="circle" if circle else "standard")

    def build() -> Any:
        if circle:
            return spline(coordinates.layout, mixing=True, couplings=COUPLINGS, hidden=16)
        return affine(coordinates.layout, COUPLINGS, **({"rank": 1, "scale": 1.0} if model == "p4inv" else {}))

    return BoltzmannGenerator(system, coordinates, seeded(build, seed), model)


def stirred(generator: BoltzmannGenerator, scale: float = 0.02, seed: int = 1) -> BoltzmannGenerator:
    """Away from where it starts: all trainable parameters are moved a little."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in generator.parameters():
            if value.requires_grad:
                value += scale * torch.randn(value.shape, generator=draw, dtype=value.dtype)
    return generator


def training(generator: BoltzmannGenerator, out: Any = None, **options: Any) -> Training:
    """Of two phases, with merges every 7 steps."""
    phases = FEWER if generator.model.startswith("spline") else PHASES
    schedule = options.pop("schedule", Schedule(phases, merge_every=7))
    return Training(generator, Encoded(generator.coordinates, frames()), schedule, out=out, **options)


def same(one: BoltzmannGenerator, other: BoltzmannGenerator) -> bool:
    """Every bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def lines(path: Path) -> list[dict[str, Any]]:
    """The log."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
