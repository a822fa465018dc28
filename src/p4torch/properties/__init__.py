"""One property a file: the feasible set S, the factors that a perturbation may have, and what is tracked."""

from p4torch.properties._math.determinant_bounds import DeterminantBounds as DeterminantBounds
from p4torch.properties._math.invertible_shapes import Invertible
from p4torch.properties._subspaces import LinearSubspace
from p4torch.properties.convolution_bound import ConvolutionBound
from p4torch.properties.fixed_rank import FixedRank
from p4torch.properties.fixed_singular_values import FixedSingularValues
from p4torch.properties.fixed_spectrum import FixedSpectrum
from p4torch.properties.low_rank_update import LowRankUpdate
from p4torch.properties.nonnegative import Nonnegative
from p4torch.properties.orthogonal import Orthogonal
from p4torch.properties.positive_definite import PositiveDefinite
from p4torch.properties.special_unitary import SpecialUnitary
from p4torch.properties.spectral_bound import SpectralBound
from p4torch.properties.stochastic import Stochastic
from p4torch.properties.symplectic import Symplectic
from p4torch.properties.unit_determinant import UnitDeterminant
from p4torch.properties.unitary import Unitary

__all__ = [
    "ConvolutionBound",
    "FixedRank",
    "FixedSingularValues",
    "FixedSpectrum",
    "Invertible",
    "LinearSubspace",
    "LowRankUpdate",
    "Nonnegative",
    "Orthogonal",
    "PositiveDefinite",
    "SpecialUnitary",
    "SpectralBound",
    "Stochastic",
    "Symplectic",
    "UnitDeterminant",
    "Unitary",
]
