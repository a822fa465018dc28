"""Molecules: their physics, coordinates and reference data. Lengths in nm, energies in kJ/mol or kT, angles in rad."""

try:
    import mdtraj  # noqa: F401
    import openmm  # noqa: F401
except ModuleNotFoundError as error:
    from p4torch.errors import P4Error

    raise P4Error(f'p4torch.molecules needs {error.name}: pip install "p4torch[molecules]"') from error

from p4torch.molecules.chirality import chiral_centres, mirror_share
from p4torch.molecules.force_field import ForceField
from p4torch.molecules.generator.chains import Chains
from p4torch.molecules.generator.generator import BoltzmannGenerator
from p4torch.molecules.generator.langevin import Langevin
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.internal import InternalCoordinates
from p4torch.molecules.mixed import MixedCoordinates
from p4torch.molecules.openmm_energy import OpenMMEnergy
from p4torch.molecules.regularised import RegularisedEnergy
from p4torch.molecules.simulation.biased import Biased
from p4torch.molecules.simulation.data import ReferenceData, load_frames
from p4torch.molecules.simulation.run import simulate
from p4torch.molecules.simulation.tempered import Tempered
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.zmatrix import ZMatrix

__all__ = [
    "Biased",
    "BoltzmannGenerator",
    "Chains",
    "ForceField",
    "InternalCoordinates",
    "Langevin",
    "MixedCoordinates",
    "MolecularSystem",
    "OpenMMEnergy",
    "ReferenceData",
    "RegularisedEnergy",
    "Samples",
    "Tempered",
    "ZMatrix",
    "chiral_centres",
    "load_frames",
    "mirror_share",
    "simulate",
]
