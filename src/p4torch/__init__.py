"""p4torch: networks that keep their mathematical properties while they train.

P4, property-preserving parameter perturbations (Krämer, Köhler and Noé 2020): the weights A are frozen inside a
feasible set S, the optimizer trains a cheap perturbation B, the network runs with R_B(A), and every N steps the
perturbation is merged into A and reset.
"""

from typing import TYPE_CHECKING, NoReturn

from p4torch import flows, testing
from p4torch.core.perturbation import Perturbation
from p4torch.core.transaction import MergeReport, Proposal, Veto
from p4torch.errors import (
    ArgumentError,
    CheckpointError,
    OptimizerError,
    P4Error,
    ProcessWarning,
    ProjectionWarning,
    PropertyWarning,
    RecoveryWarning,
    StallWarning,
)
from p4torch.merging.batch import merge
from p4torch.merging.joint import JointMerge
from p4torch.merging.scheduler import MergeScheduler
from p4torch.networks import LipschitzNetwork, Residual
from p4torch.parametrize.sites import Site, finalize, parameter_groups, penalty, perturb, sites
from p4torch.parametrize.views import View
from p4torch.properties import (
    DeterminantBounds,
    FixedRank,
    FixedSingularValues,
    FixedSpectrum,
    Invertible,
    LinearSubspace,
    LowRankUpdate,
    Nonnegative,
    Orthogonal,
    PositiveDefinite,
    SpecialUnitary,
    SpectralBound,
    Stochastic,
    Symplectic,
    Unitary,
    UnitDeterminant,
)

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "DeterminantBounds",
    "FixedRank",
    "FixedSingularValues",
    "FixedSpectrum",
    "Invertible",
    "JointMerge",
    "LinearSubspace",
    "LipschitzNetwork",
    "LowRankUpdate",
    "MergeReport",
    "MergeScheduler",
    "Nonnegative",
    "OptimizerError",
    "Orthogonal",
    "P4Error",
    "Perturbation",
    "PositiveDefinite",
    "ProcessWarning",
    "ProjectionWarning",
    "PropertyWarning",
    "Proposal",
    "RecoveryWarning",
    "Residual",
    "Site",
    "SpecialUnitary",
    "SpectralBound",
    "StallWarning",
    "Stochastic",
    "Symplectic",
    "UnitDeterminant",
    "Unitary",
    "Veto",
    "View",
    "finalize",
    "flows",
    "merge",
    "parameter_groups",
    "penalty",
    "perturb",
    "sites",
    "testing",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        new = ": it is called 'JointMerge' now" if name == "Joint" else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{new}")
