"""Topology, positions and force field from files, with errors that say what to do."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import openmm
import torch
from openmm import app, unit
from torch import Tensor

from p4torch.errors import ArgumentError, warn
from p4torch.molecules.checks import describe_residue

PathLike = str | os.PathLike[str]


def read_pdb(path: PathLike, argument: str = "path") -> tuple[app.Topology, Tensor]:
    """The topology and the positions, float64 `(atoms, 3)` in nm, of a PDB file; of several models, the first.

    Raises:
        ArgumentError: the file is not there, cannot be read, or holds no atoms.
    """
    file = _existing(path, argument)
    try:
        pdb = app.PDBFile(str(file))
    except Exception as error:
        got = f"{file}: {error or type(error).__name__}"
        raise ArgumentError.of(argument, "a PDB file with at least one atom", got) from error
    if pdb.topology.getNumAtoms() == 0:
        raise ArgumentError.of(argument, "a PDB file with at least one atom", f"{file}, which has none")
    if pdb.getNumFrames() > 1:
        warn(f"{file} has {pdb.getNumFrames()} models; the first is taken", UserWarning)
    positions = pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    return pdb.topology, torch.tensor(positions, dtype=torch.float64)


def read_system(path: PathLike) -> openmm.System:
    """An OpenMM System from the XML that `openmm.XmlSerializer` wrote.

    Raises:
        ArgumentError: the file is not there, or holds something else.
    """
    file = _existing(path, "system_xml_path")
    try:
        system = openmm.XmlSerializer.deserialize(file.read_text(encoding="utf-8"))
    except Exception as error:
        raise ArgumentError.of("system_xml_path", "the XML of an OpenMM System", f"{file}: {error}") from error
    if not isinstance(system, openmm.System):
        raise ArgumentError.of(
            "system_xml_path", "the XML of an OpenMM System", f"{file}, of a {type(system).__name__}"
        )
    return system


def read_force_field(names: tuple[str, ...]) -> app.ForceField:
    """OpenMM's force field of these files, names that OpenMM ships or paths of one's own.

    Raises:
        ArgumentError: no names, or one that cannot be found or read.
    """
    if isinstance(names, str) or not names:
        raise ArgumentError.of("forcefield", 'names of files, as ("amber14-all.xml", "implicit/obc2.xml")', repr(names))
    try:
        return app.ForceField(*names)
    except Exception as error:
        raise ArgumentError.of("forcefield", "names of OpenMM force-field files", f"{names!r}: {error}") from error


def parametrise(topology: app.Topology, names: tuple[str, ...]) -> openmm.System:
    """The System of a topology in open space, no constraints: `forcefield.createSystem` with its errors in words.

    Raises:
        ArgumentError: residues that the force field does not know, or that lack atoms (hydrogens, mostly).
    """
    force_field = read_force_field(names)
    unmatched = force_field.getUnmatchedResidues(topology)
    try:
        return force_field.createSystem(
            topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=True
        )
    except Exception as error:
        if not unmatched:
            raise ArgumentError.of("forcefield", "able to describe `path`", f"{names!r}: {error}") from error
        named = ", ".join(describe_residue(residue) for residue in unmatched[:6]) + (", ..." if unmatched[6:] else "")
        expected = f"of residues that {names!r} knows, complete with hydrogens"
        got = f"{len(unmatched)} that it cannot match: {named}. {_advice(force_field, unmatched, error)}"
        raise ArgumentError.of("path", expected, got) from error


def _advice(force_field: app.ForceField, unmatched: Sequence[Any], error: Exception) -> str:
    """What to do; hydrogens can be missing only where the force field has a residue with the same other atoms."""
    message = str(error).split("  For more information")[0]
    wrong = [residue for residue in unmatched if not _lacks_hydrogens(force_field, residue)]
    unknown = ", ".join(dict.fromkeys(r.name for r in wrong if r.name not in force_field._templates))
    own = (
        "make an OpenMM System with parameters of your own and give its XML by --system-xml (the documentation's page "
        "on molecules shows how)"
    )
    if unknown:
        advice = (
            f"The force field has no {unknown}. If that is not part of the molecule (water, ions), remove it with "
            f"openmm.app.Modeller.delete; else name a force field that has it, or {own}"
        )
    elif wrong:
        advice = f"Atoms are missing there, or are too many, and not only hydrogens: complete the file, or {own}"
    else:
        advice = (
            "Hydrogens are missing: add them with openmm.app.Modeller(topology, positions).addHydrogens(forcefield), "
            "and write the result with openmm.app.PDBFile.writeFile"
        )
    return f"{advice}. OpenMM: {message}"


def _lacks_hydrogens(force_field: app.ForceField, residue: Any) -> bool:
    """Whether a template has the residue's elements, hydrogen left out, and more hydrogens than it."""
    heavy, hydrogens = _composition(residue.atoms())
    templates = (_composition(template.atoms) for template in force_field._templates.values())
    return any(heavy == others and hydrogens < more for others, more in templates)


def _composition(atoms: Iterable[Any]) -> tuple[Counter[str], int]:
    """How many atoms of each element but hydrogen there are, and how many hydrogens."""
    count = Counter("" if atom.element is None else atom.element.symbol for atom in atoms)
    hydrogens = count.pop("H", 0)
    return count, hydrogens


def _existing(path: PathLike, argument: str) -> Path:
    file = Path(path)
    if not file.is_file():
        raise ArgumentError.of(
            argument, "a file", f"{file}, " + ("a folder" if file.is_dir() else "which is not there")
        )
    return file
