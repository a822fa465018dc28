"""A chain of four atoms whose torsion has a known distribution: the other coordinates do not touch it."""

from __future__ import annotations

import math

import openmm
import torch
from openmm import app
from torch import Tensor

from p4torch.molecules import MolecularSystem

#: Of the torsion: (multiplicity, phase in rad, k in kJ/mol), E = Σ k (1 + cos(n θ - phase)).
TORSION = ((1, 1.0, 3.0), (2, 0.5, 9.0))


def butane(temperature: float = 300.0) -> MolecularSystem:
    """C-C-C-C with harmonic bonds and angles; the torsion moves freely in its own potential."""
    system, topology = openmm.System(), app.Topology()
    residue = topology.addResidue("BUT", topology.addChain())
    atoms = [topology.addAtom(f"C{i}", app.element.carbon, residue) for i in range(4)]
    bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for _ in range(4):
        system.addParticle(12.0)
    for i in range(3):
        topology.addBond(atoms[i], atoms[i + 1])
        bonds.addBond(i, i + 1, 0.15, 2e5)
    for i in range(2):
        angles.addAngle(i, i + 1, i + 2, 1.9, 400.0)
    for n, phase, k in TORSION:
        torsions.addTorsion(0, 1, 2, 3, n, phase, k)
    for force in (bonds, angles, torsions):
        system.addForce(force)
    positions = [[0.0, 0.15, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.2, 0.1, 0.1]]
    return MolecularSystem(system, topology, torch.tensor(positions, dtype=torch.float64), temperature)


def share_of(first: float, last: float, kT: float) -> float:
    """The exact probability that the torsion lies between two angles in rad, by quadrature."""
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 * 2 * math.pi - math.pi
    energy: Tensor = sum((k * (1 + (n * grid - phase).cos()) for n, phase, k in TORSION), torch.zeros_like(grid))
    p = (-energy / kT).softmax(0)
    return float(p[(grid > first) & (grid < last)].sum())
