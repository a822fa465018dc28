"""One property a file: the feasible set S, the factors that a perturbation may have, and what is tracked."""

from p4torch.properties.determinant import UnitDeterminant
from p4torch.properties.invertible import Invertible
from p4torch.properties.orthogonal import Orthogonal
from p4torch.properties.spectral import SpectralBound
from p4torch.properties.subspaces import LinearSubspace
from p4torch.properties.update import LowRankUpdate

__all__ = ["Invertible", "LinearSubspace", "LowRankUpdate", "Orthogonal", "SpectralBound", "UnitDeterminant"]
