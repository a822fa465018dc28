"""Block-diagonal matrices in another order of the coordinates, against the dense matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p4torch.linalg.block_diagonal import BlockDiagonal, _permuted

#: A few products of small matrices in float64.
EXACT = 1e-13
CASES = [
    (6, 2, (), True),
    (7, 3, (), True),
    (7, 3, (2,), True),
    (5, 2, (2, 3), True),
    (5, 5, (), False),
    (4, 4, (2,), False),
]


def order_of(n: int, *batch: int) -> Tensor:
    drawn = torch.rand(*batch, n).argsort(-1)
    return torch.stack([drawn, drawn.argsort(-1)], -2)


def dense(r: BlockDiagonal, n: int) -> Tensor:
    """P blockdiag(R_i, I) Pᵀ, built entry by entry."""
    batch, (count, size) = r.blocks.shape[:-3], r.blocks.shape[-3:-1]
    matrix = torch.eye(n, dtype=r.blocks.dtype).expand(*batch, n, n).clone().reshape(-1, n, n)
    orders = torch.arange(n).expand(len(matrix), n) if r.order is None else r.order.reshape(-1, 2, n)[:, 0]
    for one, order, blocks in zip(matrix, orders, r.blocks.reshape(-1, count, size, size), strict=True):
        for index in range(count):
            places = order[index * size : (index + 1) * size]
            one[places[:, None], places] = blocks[index]
    return matrix.reshape(*batch, n, n)


@pytest.mark.parametrize(("n", "b", "batch", "ordered"), CASES)
def test_products(n: int, b: int, batch: tuple[int, ...], ordered: bool) -> None:
    blocks = torch.randn(*batch, n // b, b, b, dtype=torch.float64)
    r = BlockDiagonal(blocks, order_of(n, *batch) if ordered else None)
    matrix, x = dense(r, n), torch.randn(*batch, 4, n, dtype=torch.float64)
    for got, expected in (
        (r.apply_to_rows(x), x @ matrix.mT),
        (r.mT.apply_to_rows(x), x @ matrix),
        (r.left_multiply(x.mT), matrix @ x.mT),
        (r.right_multiply(x), x @ matrix),
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (0, 6)])
def test_any_leading_shape_of_rows(shape: tuple[int, ...]) -> None:
    r = BlockDiagonal(torch.randn(2, 2, 2, dtype=torch.float64), order_of(6))
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(r.apply_to_rows(x), x @ dense(r, 6).mT, rtol=0, atol=EXACT)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_permuted_and_back(batch: tuple[int, ...]) -> None:
    order, x = order_of(7, *batch), torch.randn(*batch, 3, 7, dtype=torch.float64)
    moved = _permuted(x, order, 0)
    assert torch.equal(_permuted(moved, order, 1), x)
    torch.testing.assert_close(moved, torch.take_along_dim(x, order[..., 0, :].unsqueeze(-2), -1), rtol=0, atol=0)


def test_gradients() -> None:
    order = order_of(5)

    def product(blocks: Tensor, x: Tensor) -> Tensor:
        return BlockDiagonal(blocks, order).apply_to_rows(x)

    values = torch.randn(2, 2, 2, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    inputs = tuple(value.requires_grad_() for value in values)
    assert torch.autograd.gradcheck(product, inputs) and torch.autograd.gradgradcheck(product, inputs)
