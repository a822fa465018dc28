"""Invertible linear layers whose matrices are formed, on columns and with their backward pass written out: steps of a
fused run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.linalg import triangular


def dense_reference(x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, Tensor]:
    """x Wᵀ + b for points `(P, n)`, W `(n, n)`; the bias `(n,)` may be missing. log|det W| `()` is
    added elsewhere: 0 here."""
    z = x @ weight.mT
    return z + bias[0] if bias else z, x.new_zeros(())


def triangular_weights(
    layers: Sequence[Sequence[Tensor]], gains: Sequence[float]
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """W = (I + L) A (U + exp D) and b of each layer, and Σ log|det W / det A| `()`, from the tensors A, A⁻¹, B and b of
    each, with L, D and U the parts of g B: see `p4torch.linalg.triangular.product`. The bias may be missing."""
    base, b = _stacked(layers, gains, 0)
    weights, change = triangular.product(base, b, 1.0)
    return [(weight, *values[3:]) for weight, values in zip(weights.unbind(0), layers, strict=True)], change.sum()


def triangular_inverses(
    layers: Sequence[Sequence[Tensor]], gains: Sequence[float]
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """W⁻¹ = (U + exp D)⁻¹ A⁻¹ (I + L)⁻¹ and -W⁻¹ b of the same tensors, and Σ log|det W⁻¹ / det A⁻¹|."""
    inverse, b = _stacked(layers, gains, 1)
    diagonal = b.diagonal(dim1=-2, dim2=-1)
    lower, upper = b.tril(-1) + linalg.eye_like(b), b.triu(1) + torch.diag_embed(diagonal.exp())
    right = torch.linalg.solve_triangular(lower, inverse, upper=False, left=False, unitriangular=True)
    weights = torch.linalg.solve_triangular(upper, right, upper=True).unbind(0)
    tensors = [
        (weight, *(-(weight @ bias) for bias in values[3:])) for weight, values in zip(weights, layers, strict=True)
    ]
    return tensors, -diagonal.sum()


def _stacked(layers: Sequence[Sequence[Tensor]], gains: Sequence[float], index: int) -> tuple[Tensor, Tensor]:
    """The tensor of that index, A or A⁻¹, and g B of all layers, `(L, n, n)`."""
    matrix, b = (torch.stack([values[place] for values in layers]) for place in (index, 2))
    return matrix, b * b.new_tensor(gains)[:, None, None]


class FusedDense:
    """The L linear layers of a run, with their forward and backward pass on columns `(n, P)`: z_i = W_i x_i + b_i.

    With the gradient g of z, ∂x = Wᵀ g, ∂W = g xᵀ and ∂b = g 1: [W, b] [x; 1] and g [x; 1]ᵀ = [∂W, ∂b].
    """

    def __init__(self, x: Tensor, layers: Sequence[Sequence[Tensor]]) -> None:
        points, n = x.shape
        count, self.n, kept = len(layers), n, n - n // 2
        self.blocks = x.new_empty(count, n, n + 1)
        self.matrices, self.transposed = self.blocks.unbind(0), self.blocks[..., :n].mT.unbind(0)
        self.x = [x.new_ones(n + 1, points) for _ in layers]  # [x; 1]
        self.parts = [(value[:kept], value[kept:n]) for value in self.x]
        self.rows = [value.mT for value in self.x]
        self.out = [x.new_empty(n, points) for _ in layers]
        self.out_parts = [(value[:kept], value[kept:]) for value in self.out]
        back = x.new_empty(2, n, points).unbind(0)  # ∂x of one layer and the next in turn
        self.back = [(value, (value[:kept], value[kept:])) for value in back]
        self.grad = x.new_empty(count, n, n + 1)
        self.grads = self.grad.unbind(0)

    def buffers(self) -> list[Tensor]:
        """The large ones."""
        return [self.blocks, self.grad, *self.x, *self.out]

    def prepare(self, layers: Sequence[Sequence[Tensor]]) -> None:
        """The blocks of all layers, of tensors W and b."""
        torch.stack([tensors[0] for tensors in layers], out=self.blocks[..., : self.n])
        zero = self.blocks.new_zeros(self.n)
        torch.stack([tensors[1] if len(tensors) > 1 else zero for tensors in layers], out=self.blocks[..., self.n])

    def forward(self, index: int, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of z. A coupling may have written b into `parts` already."""
        first, second = self.parts[index]
        first.copy_(a)
        if b is not second:
            second.copy_(b)
        torch.mm(self.matrices[index], self.x[index], out=self.out[index])
        return self.out_parts[index]

    def backward(self, index: int, grad: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The gradient of x from that of z, and its two parts."""
        grad_x, parts = self.back[index % 2]
        torch.mm(grad, self.rows[index], out=self.grads[index])
        torch.mm(self.transposed[index], grad, out=grad_x)
        return grad_x, parts

    def gradients(self, logdets: None, grad_total: Tensor, counts: Sequence[int]) -> list[list[Tensor | None]]:
        """Of the tensors of each layer (`counts` says of how many), after all backward passes."""
        grad = self.grad.clone()
        rows = zip(grad[..., : self.n].unbind(0), grad[..., self.n].unbind(0), strict=True)
        return [list[Tensor | None](row)[:count] for row, count in zip(rows, counts, strict=True)]
