"""Unconstrained tensors: plain low-rank updates with restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from p4torch.core.low_rank import LowRank, LowRankOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LowRankUpdate(LowRank):
    """S = all matrices `(..., n, m)`; U `(..., n, k)`, V `(..., m, k)`.

        R_B(A) = A + g U Vᵀ,   B₀: U = 0, V ~ N(0, 1)

    (n + m)k numbers train instead of nm, at any one time; the directions that merges redraw make the sum of all updates
    of full rank. Nothing is tracked or corrected, and no merge of finite numbers is refused. A step costs O((n + m)k)
    a row beside the layer's own products, a merge O(nmk).

    Args:
        base: `(..., n, m)`, real or complex.
        rank: k, 1 <= k <= m.
        scale, directions, train_directions: see `p4torch.core.low_rank.LowRank`.

    Source: Lialin, Shivagunde, Muckatira and Rumshisky (2023), ReLoRA, where U Vᵀ is W_B W_A.
    """

    stackable = True

    def __init__(
        self,
        base: Tensor,
        rank: int = 1,
        **options: Unpack[LowRankOptions],
    ) -> None:
        super().__init__(base, rank, side="add", **options)

    def defect(self, tensor: Tensor) -> Tensor:
        """0: every tensor is an element of S."""
        return torch.zeros_like(self.skips, dtype=tensor.real.dtype)

    def project(self, tensor: Tensor) -> Tensor:
        return tensor
