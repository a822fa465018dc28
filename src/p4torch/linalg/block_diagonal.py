"""Block-diagonal matrices in another order of the coordinates, R = P blockdiag(R_1, ..., R_m) Pᵀ.

Products with R cost O(n b) a row. Nothing n x n is formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.linalg.reference import reference_gradients, reference_wanted, transformed


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

    def apply_to_rows(self, x: Tensor) -> Tensor:
        """x Rᵀ for rows x `(..., m, n)`."""
        if self.order is None:
            return linalg.rows_times(x, self.blocks.squeeze(-3))
        if self.blocks.dim() > 3 or x.dim() == 1 or not fusible(x, self.blocks):
            return apply_to_rows_reference(x, self.blocks, self.order)
        if x.dim() != 2:
            return self.apply_to_rows(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return _ApplyToRows.apply(x, self.blocks, self.order)  # type: ignore[no-untyped-call]

    def left_multiply(self, matrix: Tensor) -> Tensor:
        """R A for A `(..., n, p)`."""
        if self.order is None:
            return self.blocks.squeeze(-3) @ matrix
        return self.apply_to_rows(matrix.mT).mT

    def right_multiply(self, matrix: Tensor) -> Tensor:
        """A R for A `(..., p, n)`."""
        if self.order is None:
            return matrix @ self.blocks.squeeze(-3)
        return self.mT.apply_to_rows(matrix)


def apply_to_rows_reference(x: Tensor, blocks: Tensor, order: Tensor) -> Tensor:
    """x Rᵀ from the blocks `(..., m, b, b)` in that order."""
    count, size = blocks.shape[-3], blocks.shape[-1]
    listed = _permuted(x, order, 0)
    inside = listed[..., : count * size].unflatten(-1, (count, size))
    if blocks.dim() == 3:
        moved = torch.einsum("...mi,mji->...mj", inside, blocks).flatten(-2)
    else:  # a stack: `(..., m, n)` has the rows before the coordinates
        moved = (inside.transpose(-3, -2) @ blocks.mT).transpose(-3, -2).flatten(-2)
    if count * size < x.shape[-1]:
        moved = torch.cat([moved, listed[..., count * size :]], -1)
    return _permuted(moved, order, 1)


def _permuted(x: Tensor, order: Tensor, row: int) -> Tensor:
    """The columns of x `(..., m, n)` in the order that row 0 lists (1: back again), `order` `(..., 2, n)`."""
    if order.dim() == 2:
        return x[..., order[row]]
    if x.dim() < order.dim():
        x = x.expand(*order.shape[:-2], *x.shape[-2:])
    return torch.take_along_dim(x, order[..., row, None, :], -1)


def fusible(x: Tensor, blocks: Tensor) -> bool:
    """Whether the hand-written path applies: one dtype, and nothing that rewrites operations."""
    plain = x.dtype == blocks.dtype and not linalg.autocasts(x.device)
    return plain and not transformed()


class _ApplyToRows(torch.autograd.Function):
    """With z = x P, y = z blockdiag(R_i)ᵀ Pᵀ: ∂z = (∂y P) blockdiag(R_i) and ∂R_i = (∂y P)_iᵀ z_i. Columns are gathered
    both ways, forwards by the order and backwards by its inverse, and never added to scattered places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, order: Tensor) -> Tensor:
        listed = x.index_select(-1, order[0])
        ctx.save_for_backward(x, blocks, order, listed)
        return _times(listed, blocks.mT).index_select(-1, order[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, blocks, order, listed = ctx.saved_tensors
        if reference_wanted(g):
            return reference_gradients(apply_to_rows_reference, ctx.needs_input_grad, (x, blocks, order), (g,))
        g = g.index_select(-1, order[0])
        needs_x, needs_blocks, _ = ctx.needs_input_grad
        grad_blocks = _split(g, blocks).mT @ _split(listed, blocks).conj() if needs_blocks else None
        return _times(g, blocks.conj()).index_select(-1, order[1]) if needs_x else None, grad_blocks, None


def _split(listed: Tensor, blocks: Tensor) -> Tensor:
    """Listed rows `(k, n)` block by block, `(m, k, b)`; the rest is left out. A view."""
    count, size = blocks.shape[0], blocks.shape[-1]
    return listed[:, : count * size].view(len(listed), count, size).transpose(0, 1)


def _times(listed: Tensor, blocks: Tensor) -> Tensor:
    """Listed rows `(k, n)` times blocks, in one product into its place; what is left stays."""
    result, inside = torch.empty_like(listed), blocks.shape[0] * blocks.shape[-1]
    torch.bmm(_split(listed, blocks), blocks, out=_split(result, blocks))
    if inside < listed.shape[-1]:
        result[:, inside:] = listed[:, inside:]
    return result
