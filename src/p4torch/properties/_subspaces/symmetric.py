"""Symmetric and skew-symmetric matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from p4torch.core.directions import LinearOperator
from p4torch.core.low_rank import LowRank, LowRankOptions
from p4torch.properties._math.shapes import check_real_matrix, check_square
from p4torch.properties.linear_subspace import LinearSubspace

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Symmetric(LinearSubspace, LowRank, kinds=("symmetric", "skew")):
    """S = {A `(..., n, n)` : Aᵀ = ±A}, R_B(A) = A + U Vᵀ ± V Uᵀ = A + [U, V] [V, ±U]ᵀ; U, V `(..., n, k)`.

    At B₀ it moves in nk - k(k-1)/2 directions, skew ones in nk - k(k+1)/2: n - 1 for k = 1, since v vᵀ is not skew. A
    step costs O(nk) a row beside the layer's own products, a merge O(n²k). Options as in `LinearSubspace`.
    """

    def __init__(
        self,
        base: Tensor,
        kind: Literal["symmetric", "skew"],
        rank: int = 1,
        **options: Unpack[LowRankOptions],
    ) -> None:
        check_real_matrix(base)
        check_square(base, f"a {kind} matrix")
        super().__init__(base, rank, side="add", **options)
        self.kind = kind
        self.symmetry = 1.0 if kind == "symmetric" else -1.0

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([u, v], -1), torch.cat([v, self.symmetry * u], -1)

    def pull_back(self, base: Tensor, gradient: LinearOperator) -> LinearOperator:
        """G ± Gᵀ."""
        transposed = LinearOperator(gradient.transposed, gradient.times)
        return gradient + transposed if self.kind == "symmetric" else gradient + -transposed

    def project(self, tensor: Tensor) -> Tensor:
        """(A ± Aᵀ) / 2."""
        return (tensor + self.symmetry * tensor.mT) / 2

    def extra_repr(self) -> str:
        return f"{self.kind!r}, {super().extra_repr()}"
