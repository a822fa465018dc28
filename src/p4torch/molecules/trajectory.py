"""Frames and trajectories that a user brings: do they show this molecule, and are they whole?"""

from __future__ import annotations

import mdtraj
import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.checks import check_finite, check_shape, describe
from p4torch.molecules.system import MolecularSystem

#: The mean length of a bond in a trajectory, as a multiple of the one at the system's positions.
BOND_RANGE = (0.5, 1.5)


def check_frames(x: Tensor, system: MolecularSystem) -> None:
    """Refuse positions `(..., atoms, 3)` of another number of atoms, of integers, or that are not all finite.

    Raises:
        ArgumentError: it says how many frames are not finite, and which is the first, counted over `(...)`.
    """
    check_shape(x, system.atoms)
    check_finite(x)


def check_trajectory(trajectory: mdtraj.Trajectory, system: MolecularSystem) -> Tensor:
    """The positions of a trajectory, float32 `(frames, atoms, 3)` in nm, if it is one of this molecule.

    Raises:
        ArgumentError: it has no frames, or frames that are not finite; another number of atoms; an atom of another
            name or element, the first of which is named; or a bond whose mean length is out of `BOND_RANGE`: another
            unit, or a molecule broken across a periodic box.
    """
    theirs, ours = list(trajectory.topology.atoms), list(system.topology.atoms())
    if len(theirs) != len(ours):
        raise ArgumentError.of("trajectory", f"of the {len(ours)} atoms of {system!r}", f"{len(theirs)} atoms")
    for got, atom in zip(theirs, ours, strict=True):
        named, wanted = (got.name, _symbol(got.element)), (atom.name, _symbol(atom.element))
        if named != wanted:
            expected = f"of {system!r}, with {wanted[0]} ({wanted[1]}), {describe(atom)}"
            raise ArgumentError.of("trajectory", expected, f"{named[0]} ({named[1]}) of {got.residue} there")
    if trajectory.n_frames == 0:
        raise ArgumentError.of("trajectory", "of at least one frame", "none")
    x = torch.from_numpy(trajectory.xyz)
    check_frames(x, system)
    _check_bonds(x, system)
    return x


def _check_bonds(x: Tensor, system: MolecularSystem) -> None:
    i, j = torch.tensor(system.bonds, dtype=torch.long).reshape(-1, 2).unbind(-1)
    reference = (system.positions[i] - system.positions[j]).norm(dim=-1)
    ratio = (x[:, i] - x[:, j]).norm(dim=-1).mean(0) / reference
    low, high = BOND_RANGE
    unfit = ((ratio < low) | (ratio > high)).nonzero().flatten().tolist()
    if unfit:
        first, atoms = unfit[0], list(system.topology.atoms())
        expected = "in nm, whole, and in the system's order of atoms"
        pair = " and ".join(describe(atoms[index]) for index in system.bonds[first])
        raise ArgumentError.of("trajectory", expected, f"{pair} {float(ratio[first] * reference[first]):.3f} nm apart")


def _symbol(element: object) -> str:
    return str(getattr(element, "symbol", "none"))
