"""Block-diagonal matrices in another order of the coordinates, R = P blockdiag(R_1, ..., R_m) Pᵀ.

Products with R cost O(n b) a row. Nothing n x n is formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.twins import transformed


@dataclass(frozen=True)
class BlockDiagonal:
    """R `(..., n, n)` from its blocks `(..., m, b, b)`, m b <= n: R is the identity on the coordinates that are left.

    `order` `(..., 2, n)` lists the coordinates of one block after the other, then those that are left, and in its
    second row where each coordinate stands in that list. None: the order as it is, and a single block of all.
    """

    blocks: Tensor
    order: Tensor | None = None

    @property
    def mT(self) -> BlockDiagonal:
        """Rᵀ."""
        return BlockDiagonal(self.blocks.mT, self.order)

    def to(self, dtype: torch.dtype) -> BlockDiagonal:
        """R in another dtype."""
        return BlockDiagonal(self.blocks.to(dtype), self.order)

    def rows(self, x: Tensor) -> Tensor:
        """x Rᵀ for rows x `(..., m, n)`."""
        if self.order is None:
            return linalg.rows_times(x, self.blocks.squeeze(-3))
        listed = permuted(x, self.order, 0)
        count, size = self.blocks.shape[-3], self.blocks.shape[-1]
        inside = listed[..., : count * size].unflatten(-1, (count, size))
        if self.blocks.dim() == 3:
            flat = inside.reshape(-1, count, size).transpose(0, 1)
            moved = torch.bmm(flat, self.blocks.mT).transpose(0, 1).reshape(*x.shape[:-1], count * size)
        else:  # a stack: `(..., m, n)` has the rows before the coordinates
            moved = (inside.transpose(-3, -2) @ self.blocks.mT).transpose(-3, -2).flatten(-2)
        if count * size < x.shape[-1]:
            moved = torch.cat([moved, listed[..., count * size :]], -1)
        return permuted(moved, self.order, 1)

    def left(self, matrix: Tensor) -> Tensor:
        """R A for A `(..., n, p)`."""
        if self.order is None:
            return self.blocks.squeeze(-3) @ matrix
        return self.rows(matrix.mT).mT

    def right(self, matrix: Tensor) -> Tensor:
        """A R for A `(..., p, n)`."""
        if self.order is None:
            return matrix @ self.blocks.squeeze(-3)
        return self.mT.rows(matrix)


def permuted(x: Tensor, order: Tensor, row: int) -> Tensor:
    """The columns of x `(..., m, n)` in the order that row 0 lists (1: back again), `order` `(..., 2, n)`."""
    if order.dim() > 2:
        if x.dim() < order.dim():
            x = x.expand(*order.shape[:-2], *x.shape[-2:])
        return torch.take_along_dim(x, order[..., row, None, :], -1)
    if transformed():
        return x[..., order[row]]
    return _Permuted.apply(x, order, row)  # type: ignore[no-untyped-call]


class _Permuted(torch.autograd.Function):
    """Columns gathered; backwards they are gathered by the inverse, which is faster than adding to scattered ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, row: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.row = row
        return x.index_select(-1, order[row])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        return permuted(g, order, 1 - ctx.row), None, None
