"""The molecules and force fields that tests of `p4torch.molecules` run on."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from p4torch.molecules.system import MolecularSystem

DATA = Path(__file__).parent / "data"

#: Files of OpenMM by the name of what they make.
FORCE_FIELDS = {
    "amber99sbildn, obc": ("amber99sbildn.xml", "amber96_obc.xml"),  # GBSAOBCForce
    "amber14, obc2": ("amber14-all.xml", "implicit/obc2.xml"),  # CustomGBForce
    "amber96, obc1": ("amber96.xml", "implicit/obc1.xml"),  # CustomGBForce
    "amber14, gbn2": ("amber14-all.xml", "implicit/gbn2.xml"),  # CustomGBForce
}

MOLECULES = ("alanine-dipeptide", *sorted(path.stem for path in DATA.glob("*.pdb")))


@cache
def system_of(name: str = "alanine-dipeptide", forcefield: str = "amber99sbildn, obc") -> MolecularSystem:
    """A molecule by the name of its file, with a force field of `FORCE_FIELDS`; one object, not to be changed."""
    if name == "alanine-dipeptide" and forcefield == "amber99sbildn, obc":
        return MolecularSystem.alanine_dipeptide()
    return MolecularSystem.from_pdb(pdb_of(name), FORCE_FIELDS[forcefield])


def pdb_of(name: str) -> Path:
    """The file of a molecule."""
    if name == "alanine-dipeptide":
        return Path(__file__).parents[2] / "src" / "p4torch" / "molecules" / "data" / f"{name}.pdb"
    return DATA / f"{name}.pdb"


def shaken(system: MolecularSystem, frames: int, noise: float = 0.004) -> Tensor:
    """The positions with normal noise (nm), float64 `(frames, atoms, 3)`."""
    return system.positions + noise * torch.randn(frames, system.atoms, 3, dtype=torch.float64)
