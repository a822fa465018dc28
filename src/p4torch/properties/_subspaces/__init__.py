"""The kinds of `LinearSubspace`, one a file."""

from p4torch.properties._subspaces.circulant import Circulant
from p4torch.properties._subspaces.equivariant import Equivariant
from p4torch.properties._subspaces.intertwining import Intertwining
from p4torch.properties._subspaces.masked import Masked
from p4torch.properties._subspaces.symmetric import Symmetric
from p4torch.properties._subspaces.toeplitz import Toeplitz
from p4torch.properties.linear_subspace import LinearSubspace

__all__ = ["Circulant", "Equivariant", "Intertwining", "LinearSubspace", "Masked", "Symmetric", "Toeplitz"]
