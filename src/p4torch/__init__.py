"""p4torch: networks that keep their mathematical properties while they train.

P4, property-preserving parameter perturbations (Krämer, Köhler and Noé 2020): the weights A are frozen inside a
feasible set S, the optimizer trains a cheap perturbation B, the network runs with R_B(A), and every N steps the
perturbation is merged into A and reset.
"""

from p4torch import flows, testing
from p4torch.errors import (
    ArgumentError,
    CheckpointError,
    OptimizerError,
    P4Error,
    ProjectionWarning,
    RecoveryWarning,
)
from p4torch.merging import MergeReport, Proposal, Veto
from p4torch.perturbation import Perturbation
from p4torch.properties import Invertible, LowRankUpdate, Orthogonal, SpectralBound, UnitDeterminant
from p4torch.schedule import MergeScheduler
from p4torch.sites import Site, finalize, merge, parameter_groups, penalty, perturb, sites
from p4torch.views import View

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "Invertible",
    "LowRankUpdate",
    "MergeReport",
    "MergeScheduler",
    "OptimizerError",
    "Orthogonal",
    "P4Error",
    "Perturbation",
    "ProjectionWarning",
    "Proposal",
    "RecoveryWarning",
    "Site",
    "SpectralBound",
    "UnitDeterminant",
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
