"""Energies and gradients of molecules: the force field in PyTorch against OpenMM's Reference platform."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.layers import Missing
from benchmarks.measure import Effort, Side
from benchmarks.rows import Job, Row, compare
from p4torch.runs.provenance import cores

FRAMES, NOISE = 4000, 0.005  # nm
OURS = {"p4torch float32": torch.float32, "p4torch float64": torch.float64}


def jobs() -> list[Job]:
    """4,000 frames of alanine dipeptide on all cores, and on one."""
    counts = {"all-cores": cores(), "one-core": 1}
    return [Job("molecules", name, partial(_energies, count), cost=15) for name, count in counts.items()]


def _energies(count: int, effort: Effort) -> list[Row]:
    try:
        from p4torch.molecules import ForceField, MolecularSystem, OpenMMEnergy
    except ImportError as error:
        raise Missing('OpenMM is missing: pip install -e ".[molecules]"') from error
    system = MolecularSystem.alanine_dipeptide()
    x = system.positions + NOISE * torch.randn(FRAMES, system.atoms, 3, dtype=torch.float64)
    force_field = ForceField(system.openmm_system)
    theirs = f"OpenMM Reference, processes: {count}"
    with OpenMMEnergy(system.openmm_system, workers=count) as openmm_energy:
        builders: dict[str, Callable[[], Side]] = {theirs: lambda: Side(partial(openmm_energy.energy_and_gradient, x))}
        for name, dtype in OURS.items():
            builders[name] = partial(Side, partial(force_field.energy_and_gradient, x.to(dtype)))
        timed = compare(builders, effort, count, frames=FRAMES, atoms=system.atoms)
    barred = "p4torch float32" if count > 1 else None
    row = f"energies and gradients, alanine dipeptide, cores: {count}"
    return [timed.row(row, theirs, name, bar="energies" if name == barred else None) for name in OURS]
