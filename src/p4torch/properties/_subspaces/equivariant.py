"""Matrices that commute with a finite group: equivariant layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.core.directions import LinearOperator, matrix_operator
from p4torch.core.identity import fingerprint
from p4torch.core.low_rank import LowRank, LowRankOptions
from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError
from p4torch.properties._math import biases
from p4torch.properties._math.groups import (
    Group,
    commutant_dimension,
    images,
    permutations_of,
    representations,
    reynolds,
    tangent_dimension,
)
from p4torch.properties._math.shapes import check_real_matrix
from p4torch.properties.linear_subspace import LinearSubspace

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Equivariant(LinearSubspace, LowRank, kinds=("group",)):
    """S = {A `(..., n, m)` : ρ_out(g) A = A ρ_in(g) for all g}; U `(..., n, k)`, V `(..., m, k)`.

        R_B(A) = A + 1/|G| Σ_g ρ_out(g) U Vᵀ ρ_in(g)⁻¹ = A + P Qᵀ,
        P = [ρ_out(g) U / |G|]_g,   Q = [ρ_in(g)⁻ᵀ V]_g   `(..., n, k|G|)`

    At B₀ it moves, for ρ_out = ρ_in with m_λ copies of the irreducible part λ, of degree d_λ, over the complex numbers,
    in Σ_λ m_λ min(k d_λ, m_λ) of the Σ_λ m_λ² directions of S. A step costs O(|G|k(n² + m²)) for the factors (n + m
    instead of squares for permutations) and O(|G|k(n + m)) a row, or one product of whole matrices where that is
    cheaper; a merge O(|G|nm(n + m)), the mean over the group, in float64. Options as in `LinearSubspace`; a matrix that
    is given twice counts once.
    """

    left: Tensor
    right: Tensor
    left_order: Tensor | None
    right_order: Tensor | None

    def __init__(
        self,
        base: Tensor,
        kind: None = None,
        rank: int | None = None,
        *,
        group: Group,
        **options: Unpack[LowRankOptions],
    ) -> None:
        check_real_matrix(base)
        left, right = representations(group, *base.shape[-2:])
        free = commutant_dimension(left, right)
        if free == 0:
            raise ArgumentError.of("group", "one that some matrix but 0 commutes with", "representations without it")
        if rank is None:
            rank, least = 1, min(base.shape[-2], free)
            while rank < base.shape[-1] and tangent_dimension(left, right, rank) < least:
                rank += 1
        super().__init__(base, rank, side="add", **options)
        pairs = torch.cat([left.flatten(1), right.flatten(1)], -1)
        self._fingerprint = fingerprint(torch.stack(sorted(pairs, key=fingerprint)))  # of elements in any order
        for name, matrices in (("left", left), ("right", right)):
            self.register_buffer(name, matrices.to(base))
            self.register_buffer(f"{name}_order", permutations_of(matrices))

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        with linalg.full_precision(u.device):
            return images(self.left, self.left_order, u) / len(self.left), images(self.right, self.right_order, v)

    def pull_back(self, base: Tensor, gradient: LinearOperator) -> LinearOperator:
        """The mean of ρ_out(g)ᵀ G ρ_in(g)⁻ᵀ."""
        parts = [
            matrix_operator(one.mT / len(self.left)) @ gradient @ matrix_operator(other)
            for one, other in zip(self.left, self.right, strict=True)
        ]
        return sum(parts[1:], start=parts[0])

    def project(self, tensor: Tensor) -> Tensor:
        """The mean of ρ_out(g) A ρ_in(g)⁻¹."""
        return reynolds(tensor, self.left.double(), self.right.double()).to(tensor.dtype)

    def companions(self, module: nn.Module, tensor_name: str) -> dict[str, Callable[[Tensor], Perturbation]]:
        """A bias, among the invariant vectors."""
        invariant = partial(LinearSubspace, group=(self.left, torch.ones(len(self.left), 1, 1)))
        return biases.companions(module, tensor_name, self.left.shape[-1], invariant)

    def warning_for(self, module: nn.Module, tensor_name: str) -> str | None:
        return biases.warning_for(module, tensor_name, self.left, torch.ones(len(self.left)), Equivariant)

    def identity(self) -> str:
        return f"Equivariant(group {self._fingerprint}, {super().extra_repr()})"

    def extra_repr(self) -> str:
        return f"group of {len(self.left)}, {super().extra_repr()}"
