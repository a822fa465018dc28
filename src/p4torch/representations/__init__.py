"""Representations of groups by real matrices: by generators, and for Lie groups by a basis of the algebra."""

from p4torch.representations.finite import cyclic, permutations, symmetric
from p4torch.representations.representation import Representation, same_elements
from p4torch.representations.rotations import o3, rotations2d, so3, su2

__all__ = [
    "Representation",
    "cyclic",
    "o3",
    "permutations",
    "rotations2d",
    "same_elements",
    "so3",
    "su2",
    "symmetric",
]
