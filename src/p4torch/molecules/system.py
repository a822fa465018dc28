"""A molecule and its physics at a temperature."""

from __future__ import annotations

import copy
import hashlib
import json
from functools import cached_property
from importlib import resources
from typing import Any, Protocol
from xml.etree import ElementTree

import mdtraj
import openmm
from openmm import app
from torch import Tensor

from p4torch._options import check_number
from p4torch.errors import ArgumentError
from p4torch.molecules import checks
from p4torch.molecules.force_field import ForceField
from p4torch.molecules.openmm_energy import OpenMMEnergy
from p4torch.molecules.reading import PathLike, parametrise, read_pdb, read_system
from p4torch.molecules.units import GAS_CONSTANT

AMBER = ("amber99sbildn.xml", "amber96_obc.xml")


class Potential(Protocol):
    """A potential energy in kJ/mol, differentiable."""

    def energy(self, x: Tensor) -> Tensor:
        """Of positions `(..., atoms, 3)` in nm, `(...)`."""


class MolecularSystem:
    """One molecule in open space: an OpenMM System, its topology, positions, and a temperature.

    The distribution that it stands for is p(x) ∝ exp(-u(x)), u(x) = U(x) / kT.

    Attributes:
        openmm_system: the physics, a copy of what was given; copy it again before adding a bias.
        topology: of `openmm.app`.
        positions: float64 `(atoms, 3)` in nm.
        temperature: in kelvin.

    Raises:
        ArgumentError: a periodic system, a cutoff, constraints, virtual sites, massless particles, thermostats,
            barostats, an external or Drude force, several molecules, atoms on top of each other, positions that are
            not finite, another topology's atoms, or a temperature <= 0.
    """

    def __init__(
        self,
        openmm_system: openmm.System,
        topology: app.Topology,
        positions: Tensor,
        temperature: float = 300.0,
    ) -> None:
        self.temperature = float(check_number("temperature", temperature, 1e-300, "a finite number of kelvin > 0"))
        checks.check_openmm_system(openmm_system)
        checks.check_same_atoms(openmm_system, topology)
        self.openmm_system = copy.deepcopy(openmm_system)
        self.topology = topology
        self.positions = checks.check_positions(positions, topology)
        self.bonds = checks.bond_pairs(openmm_system, topology)
        checks.check_connected(topology, self.bonds, self.positions)
        checks.check_invariant(self.openmm_system, self.positions)

    @classmethod
    def from_pdb(
        cls, path: PathLike, forcefield: tuple[str, ...] = AMBER, temperature: float = 300.0
    ) -> MolecularSystem:
        """From a PDB file with hydrogens (its first model) and the names of OpenMM force-field files.

        Raises:
            ArgumentError: the file cannot be read; residues that the force field does not know or that lack
                hydrogens; an unknown force field; and what the class itself refuses.
        """
        topology, positions = read_pdb(path)
        return cls(parametrise(topology, forcefield), topology, positions, temperature)

    @classmethod
    def from_xml(cls, system_xml_path: PathLike, pdb_path: PathLike, temperature: float = 300.0) -> MolecularSystem:
        """From the XML of an OpenMM System, and a PDB file with topology and positions of the same atoms."""
        system = read_system(system_xml_path)
        topology, positions = read_pdb(pdb_path, "pdb_path")
        return cls(system, topology, positions, temperature)

    @classmethod
    def alanine_dipeptide(cls, temperature: float = 300.0) -> MolecularSystem:
        """ACE-ALA-NME, 22 atoms, amber99sbildn with OBC solvent: the built-in example."""
        file = resources.files("p4torch.molecules") / "data" / "alanine-dipeptide.pdb"
        with resources.as_file(file) as path:
            return cls.from_pdb(path, temperature=temperature)

    @property
    def atoms(self) -> int:
        """How many."""
        return len(self.positions)

    @property
    def kT(self) -> float:
        """Boltzmann's constant times the temperature, in kJ/mol."""
        return GAS_CONSTANT * self.temperature

    @cached_property
    def potential(self) -> Potential:
        """The potential energy in kJ/mol: as PyTorch, or by OpenMM's processes if a force is not known there."""
        try:
            return ForceField(self.openmm_system)
        except ArgumentError:
            return OpenMMEnergy(self.openmm_system)

    def energy(self, x: Tensor) -> Tensor:
        """The reduced energy u(x) = U(x) / kT of positions `(..., atoms, 3)` in nm, `(...)`, without unit."""
        return self.potential.energy(x) / self.kT

    @cached_property
    def mdtraj_topology(self) -> mdtraj.Topology:
        """The topology as MDTraj has it."""
        return mdtraj.Topology.from_openmm(self.topology)

    @cached_property
    def fingerprint(self) -> str:
        """What elements, bonds and parameters come to, in 16 hexadecimal digits.

        Neither masses, positions nor temperature count: they change no energy.
        """
        elements = [atom.element.symbol if atom.element else "" for atom in self.topology.atoms()]
        root = ElementTree.fromstring(openmm.XmlSerializer.serialize(self.openmm_system))
        forces = sorted(_canonical(force) for force in root.iter("Force") if force.get("type") != "CMMotionRemover")
        content = json.dumps([elements, self.bonds, forces])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "potential"}

    def __repr__(self) -> str:
        residues = "-".join(residue.name for residue in self.topology.residues())
        return (
            f"MolecularSystem({residues}, atoms={self.atoms}, temperature={self.temperature:g} K, "
            f"fingerprint={self.fingerprint})"
        )


_NO_PHYSICS = ("name", "forceGroup", "version")


def _canonical(element: ElementTree.Element) -> str:
    """An element as text, without labels; terms that name their particles in an order of their own are sorted."""
    attributes = sorted((key, value) for key, value in element.items() if key not in _NO_PHYSICS)
    children = [_canonical(child) for child in element]
    if all(any(key in child.keys() for key in ("p1", "particle1")) for child in element):  # noqa: SIM118
        children.sort()
    return json.dumps([element.tag, attributes, element.text and element.text.strip(), children])
