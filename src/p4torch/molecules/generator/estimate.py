"""How long a training will take, before it starts."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from p4torch.molecules.generator.architectures import architecture, default_zmatrix, seeded
from p4torch.molecules.generator.molecular_flow import MolecularFlow
from p4torch.molecules.generator.phase_fit import PhaseFit
from p4torch.molecules.generator.schedule import Schedule
from p4torch.molecules.mixed import MixedCoordinates
from p4torch.molecules.system import MolecularSystem

#: Steps that are timed, after one that is not.
TIMED = 3


def untrained(system: MolecularSystem, model: str) -> MolecularFlow:
    """A generator whose coordinates know a single frame: as large and as fast as one that is trained."""
    kind = architecture(model)
    coordinates = MixedCoordinates(default_zmatrix(system), reference=system.positions, torsions=kind.torsions)
    return MolecularFlow(system, coordinates, seeded(lambda: kind.build(coordinates.layout), 0), model)


@lru_cache(maxsize=64)
def estimate_seconds(system: MolecularSystem, model: str, schedule: Schedule) -> float:
    """Seconds on one core, from a few steps of each phase with an untrained flow; measured once."""
    generator = untrained(system, model)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as jobs have
    try:
        return sum(
            phase.steps * _step_seconds(generator, schedule, index) for index, phase in enumerate(schedule.phases)
        )
    finally:
        torch.set_num_threads(threads)


def _step_seconds(generator: MolecularFlow, schedule: Schedule, index: int) -> float:
    fit = PhaseFit(generator, schedule, index)
    points = generator.flow.sample(fit.phase.samples + fit.phase.frames)
    fit.step(points)
    started = time.perf_counter()
    for _ in range(TIMED):
        fit.step(points)
    return (time.perf_counter() - started) / TIMED
