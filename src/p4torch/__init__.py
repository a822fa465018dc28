"""p4torch: networks that keep their mathematical properties while they train.

P4, property-preserving parameter perturbations (Krämer, Köhler and Noé 2020): the weights A are frozen inside a
feasible set S, the optimizer trains a cheap perturbation B, the network runs with R_B(A), and every N steps the
perturbation is merged into A and reset.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p4torch import flows, representations, testing
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
    from p4torch.parametrize.many import perturb_all
    from p4torch.parametrize.sites import Site, finalize, parameter_groups, penalty, perturb, sites
    from p4torch.parametrize.summary import SiteSummary, Summary, summary
    from p4torch.parametrize.views import View
    from p4torch.properties import (
        ConvolutionBound,
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

__version__ = "0.2.0"

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "ConvolutionBound",
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
    "SiteSummary",
    "SpecialUnitary",
    "SpectralBound",
    "StallWarning",
    "Stochastic",
    "Summary",
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
    "perturb_all",
    "representations",
    "sites",
    "summary",
    "testing",
]

#: Packages that are at hand without an import of their own, and modules that hold the public names. Torch takes a
#: second or more to import: that waits until one of these names is used.
_PACKAGES = ("core", "flows", "merging", "networks", "parametrize", "properties", "representations", "testing")
_HOMES = (
    "flows",
    "representations",
    "testing",
    "core.perturbation",
    "core.transaction",
    "errors",
    "merging.batch",
    "merging.joint",
    "merging.scheduler",
    "networks",
    "parametrize.many",
    "parametrize.sites",
    "parametrize.summary",
    "parametrize.views",
    "properties",
)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "linalg":  # which modules of the package import by this name
            return import_module(f"{__name__}.linalg")
        if name in _PACKAGES or name in __all__:
            for home in _HOMES:
                module = import_module(f"{__name__}.{home}")
                globals().update({public: vars(module)[public] for public in __all__ if public in vars(module)})
            return globals()[name]
        new = ": it is called 'JointMerge' now" if name == "Joint" else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{new}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
