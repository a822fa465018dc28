"""Molecules that no protein force field knows, and that have no chiral centre: their atoms, bonds and places."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from p4torch.molecules.checks import harmonic_bonds

#: Heavy atoms with the heavy atoms that each is bound to before it, and how many hydrogens each carries.
SMALL: dict[str, tuple[tuple[str, tuple[int, ...], int], ...]] = {
    "ethanol": (("C", (), 3), ("C", (0,), 2), ("O", (1,), 1)),
    "butane": (("C", (), 3), ("C", (0,), 2), ("C", (1,), 2), ("C", (2,), 3)),
    "toluene": (
        ("C", (), 3),
        ("C", (0,), 0),
        ("C", (1,), 1),
        ("C", (2,), 1),
        ("C", (3,), 1),
        ("C", (4,), 1),
        ("C", (1, 5), 1),
    ),
    "glycine": (("N", (), 2), ("C", (0,), 2), ("C", (1,), 0), ("O", (2,), 0), ("O", (2,), 1)),
}
#: Lengths of bonds in nm, and how stiff all of them are in kJ/mol/nm².
LENGTH, HYDROGEN_LENGTH, STIFFNESS = 0.15, 0.11, 2e5
#: Of every angle: 109.5 degrees, 400 kJ/mol/rad².
ANGLE, ANGLE_STIFFNESS = 1.911, 400.0


def small_molecule(name: str) -> tuple[app.Topology, Tensor]:
    """The topology, of one residue, and positions `(atoms, 3)` in nm of the least energy."""
    topology, bonds = app.Topology(), list[tuple[int, int]]()
    residue = topology.addResidue(residue_of(name), topology.addChain("A"), "1")
    symbols = [symbol for symbol, _, _ in SMALL[name]]
    bonds += [(heavy, before) for heavy, (_, near, _) in enumerate(SMALL[name]) for before in near]
    for heavy, (_, _, hydrogens) in enumerate(SMALL[name]):
        bonds += [(heavy, len(symbols) + index) for index in range(hydrogens)]
        symbols += ["H"] * hydrogens
    atoms = [
        topology.addAtom(f"{symbol}{number + 1}", app.Element.getBySymbol(symbol), residue)
        for number, symbol in enumerate(symbols)
    ]
    for i, j in bonds:
        topology.addBond(atoms[i], atoms[j])
    return topology, _relaxed(_springs(topology), len(atoms))


def residue_of(name: str) -> str:
    """What the molecule's residue is called; not as one of a protein, whose bonds OpenMM knows."""
    return f"{name[0].upper()}01"


def small_files(name: str, folder: Path) -> tuple[Path, Path]:
    """The molecule as PDB, and a System of bonds, angles and repulsion as XML."""
    topology, x = small_molecule(name)
    pdb, xml = folder / f"{name}.pdb", folder / f"{name}.xml"
    with pdb.open("w") as file:
        app.PDBFile.writeFile(topology, x.numpy() * unit.nanometer, file)
    xml.write_text(openmm.XmlSerializer.serialize(_springs(topology)))
    return pdb, xml


def _springs(topology: app.Topology) -> openmm.System:
    """Harmonic bonds and angles, and repulsion of all atoms that are further apart."""
    system, bonds, angles = openmm.System(), openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    repulsion = openmm.NonbondedForce()
    near: dict[int, list[int]] = {atom.index: [] for atom in topology.atoms()}
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
        repulsion.addParticle(0.0, 0.25 if atom.element.symbol != "H" else 0.2, 0.1)
    for one, other in topology.bonds():
        hydrogen = "H" in (one.element.symbol, other.element.symbol)
        bonds.addBond(one.index, other.index, HYDROGEN_LENGTH if hydrogen else LENGTH, STIFFNESS)
        near[one.index].append(other.index)
        near[other.index].append(one.index)
    for centre, around in near.items():
        for i, j in _pairs(around):
            angles.addAngle(i, centre, j, ANGLE, ANGLE_STIFFNESS)
    repulsion.createExceptionsFromBonds([(a.index, b.index) for a, b in topology.bonds()], 0.0, 0.5)
    for force in (bonds, angles, repulsion):
        system.addForce(force)
    return system


def _pairs(items: list[int]) -> Iterable[tuple[int, int]]:
    return ((i, j) for place, i in enumerate(items) for j in items[:place])


def _relaxed(system: openmm.System, atoms: int) -> Tensor:
    """From places at random, by annealing and minimisation."""
    integrator = openmm.LangevinMiddleIntegrator(1000.0, 10.0, 0.0005)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.random.default_rng(0).normal(scale=0.3, size=(atoms, 3)))
    openmm.LocalEnergyMinimizer.minimize(context)
    integrator.step(2000)
    openmm.LocalEnergyMinimizer.minimize(context)
    state = context.getState(getPositions=True)
    x = torch.tensor(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer), dtype=torch.float64)
    i, j = torch.tensor(list(harmonic_bonds(system))).unbind(-1)
    assert float((x[i] - x[j]).norm(dim=-1).max()) < 2 * LENGTH
    return x
