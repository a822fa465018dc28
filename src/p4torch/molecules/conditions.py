"""Under what conditions a molecule is looked at, in words."""

from __future__ import annotations

import openmm


def solvent(system: openmm.System) -> str:
    """What stands for the solvent: a term of the energy, or nothing."""
    names = [type(force).__name__ for force in system.getForces()]
    born = [name for name in names if name in ("GBSAOBCForce", "CustomGBForce", "AmoebaGeneralizedKirkwoodForce")]
    return f"implicit, generalised Born ({', '.join(born)})" if born else "none: vacuum"
