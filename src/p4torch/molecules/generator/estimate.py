"""How long a training will take, before it starts."""

from __future__ import annotations

import time

import torch

from p4torch.molecules.generator.architectures import architecture
from p4torch.molecules.generator.generator import BoltzmannGenerator, default_zmatrix, seeded
from p4torch.molecules.generator.protocol import Protocol, Stage
from p4torch.molecules.generator.stage_fit import StageFit
from p4torch.molecules.mixed import MixedCoordinates
from p4torch.molecules.system import MolecularSystem

#: Steps that are timed, after one that is not.
TIMED = 3


def untrained(system: MolecularSystem, model: str) -> BoltzmannGenerator:
    """A generator whose coordinates know a single frame: as large and as fast as one that is trained."""
    kind = architecture(model)
    coordinates = MixedCoordinates(default_zmatrix(system), reference=system.positions, torsions=kind.torsions)
    return BoltzmannGenerator(system, coordinates, seeded(lambda: kind.build(coordinates.layout), 0), model)


def estimate_seconds(system: MolecularSystem, model: str, protocol: Protocol) -> float:
    """Seconds on one core, from a few steps of each stage with an untrained flow."""
    generator = untrained(system, model)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as jobs have
    try:
        return sum(stage.steps * _step_seconds(generator, stage, protocol) for stage in protocol.stages)
    finally:
        torch.set_num_threads(threads)


def _step_seconds(generator: BoltzmannGenerator, stage: Stage, protocol: Protocol) -> float:
    fit = StageFit(generator, stage, protocol)
    optimizer = fit.configure_optimizers()
    points = generator.flow.sample(stage.samples + stage.frames)
    fit.step(points, optimizer)
    started = time.perf_counter()
    for _ in range(TIMED):
        fit.step(points, optimizer)
    return (time.perf_counter() - started) / TIMED
