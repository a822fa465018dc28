"""The kinds of `LinearSubspace`, one a file."""

from p4torch.properties.subspace import LinearSubspace
from p4torch.properties.subspaces.circulant import Circulant
from p4torch.properties.subspaces.equivariant import Equivariant
from p4torch.properties.subspaces.masked import Masked
from p4torch.properties.subspaces.symmetric import Symmetric
from p4torch.properties.subspaces.toeplitz import Toeplitz

__all__ = ["Circulant", "Equivariant", "LinearSubspace", "Masked", "Symmetric", "Toeplitz"]
