"""Molecules: their physics, coordinates and reference data. Lengths in nm, energies in kJ/mol or kT, angles in rad."""

try:
    import jinja2  # noqa: F401
    import mdtraj  # noqa: F401
    import networkx  # noqa: F401
    import openmm  # noqa: F401
except ModuleNotFoundError as error:
    from p4torch.errors import P4Error

    raise P4Error(f'p4torch.molecules needs {error.name}: pip install "p4torch[molecules]"') from error

from typing import TYPE_CHECKING, NoReturn

from p4torch.molecules.chirality import chiral_centres, wrong_chirality_share
from p4torch.molecules.force_field import ForceField
from p4torch.molecules.generator.chains import Chains
from p4torch.molecules.generator.generator import BoltzmannGenerator
from p4torch.molecules.generator.mala import MALA
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.internal import InternalCoordinates
from p4torch.molecules.mixed import MixedCoordinates
from p4torch.molecules.openmm_energy import OpenMMEnergy
from p4torch.molecules.regularised import RegularisedEnergy
from p4torch.molecules.simulation.data import ReferenceData, load_frames
from p4torch.molecules.simulation.parallel_tempering import ParallelTempering
from p4torch.molecules.simulation.run import simulate
from p4torch.molecules.simulation.torsion_flattening import TorsionFlattening
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.zmatrix import ZMatrix

__all__ = [
    "MALA",
    "BoltzmannGenerator",
    "Chains",
    "ForceField",
    "InternalCoordinates",
    "MixedCoordinates",
    "MolecularSystem",
    "OpenMMEnergy",
    "ParallelTempering",
    "ReferenceData",
    "RegularisedEnergy",
    "Samples",
    "TorsionFlattening",
    "ZMatrix",
    "chiral_centres",
    "load_frames",
    "simulate",
    "wrong_chirality_share",
]

_RENAMED = {
    "Biased": "TorsionFlattening",
    "Langevin": "MALA",
    "Tempered": "ParallelTempering",
    "mirror_share": "wrong_chirality_share",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        new = f": it is called {_RENAMED[name]!r} now" if name in _RENAMED else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{new}")
