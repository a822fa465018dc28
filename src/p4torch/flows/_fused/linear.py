"""Invertible linear layers with low-rank perturbations, on columns and with their backward pass written out: steps of
a fused run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p4torch import linalg


def linear_reference(
    x: Tensor, base: Tensor, inverse: Tensor, u: Tensor, v: Tensor, *bias: Tensor
) -> tuple[Tensor, Tensor]:
    """x (A + U Vᵀ)ᵀ + b for points `(P, n)` and log|det K| = log|det (A + U Vᵀ) / det A| `()`. Factors are `(n, k)`,
    `inverse` is A⁻¹, and the bias `(n,)` may be missing."""
    z = x @ (base + u @ v.mT).mT
    return z + bias[0] if bias else z, linalg.slogdet(linalg.capacitance(inverse @ u, v))[1]


def linear_inverse_reference(
    z: Tensor, base: Tensor, inverse: Tensor, u: Tensor, v: Tensor, *bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The inverse, of the same tensors: W⁻¹ (z - b) as rows, and -log|det K|."""
    return linear_reference(z, *inverse_tensors(base, inverse, u, v, *bias))


def inverse_tensors(base: Tensor, inverse: Tensor, u: Tensor, v: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
    """A⁻¹, A, U', V' and b' of the inverse, x = W⁻¹ z + b' with W⁻¹ = A⁻¹ + U' V'ᵀ: by the Woodbury identity
    U' = -A⁻¹ U K⁻¹, V' = A⁻ᵀ V, and b' = -W⁻¹ b."""
    x_u = inverse @ u
    new_u = -linalg.solve_rows(linalg.capacitance(x_u, v).mT, x_u)
    new_v = inverse.mT @ v
    shift = (-(inverse @ value + new_u @ (new_v.mT @ value)) for value in bias)
    return inverse, base, new_u, new_v, *shift


class FusedLinears:
    """The L linear layers of a run, with their forward and backward pass on columns `(n, P)`: z_i = W_i x_i + b_i,
    W = A + U Vᵀ.

    The loop holds two products a layer and two thin ones; all else is done for all layers at once, before or after it.
    With the gradient g of z, ∂x = Wᵀ g, ∂b = g 1, and from ∂W = g xᵀ, which is not formed, ∂U = g (Vᵀ x)ᵀ and
    ∂V = x (Uᵀ g)ᵀ. The thin factors come along with the products by W: the blocks M = [[W, U], [Vᵀ, ·]] give

        [W; Vᵀ] x + [b; 0] = [z; Vᵀ x],   [W, U]ᵀ g = [∂x; Uᵀ g],   g [Vᵀ x; 1]ᵀ = [∂U, ∂b].
    """

    def __init__(self, x: Tensor, layers: Sequence[Sequence[Tensor]]) -> None:
        points, n = x.shape
        count, rank, self.n, kept = len(layers), layers[0][2].shape[-1], n, n - n // 2
        self.stacks = [x.new_empty(count, *value.shape) for value in layers[0][:4]]  # A, A⁻¹, U, V
        self.blocks, self.shifts = x.new_empty(count, n + rank, n + rank), x.new_zeros(count, n + rank, 1)
        self.forward_blocks, self.backward_blocks = self.blocks[..., :n].unbind(0), self.blocks[:, :n].mT.unbind(0)
        self.shift = self.shifts.unbind(0)
        self.x = [x.new_empty(n, points) for _ in layers]
        self.parts = [(value[:kept], value[kept:]) for value in self.x]
        out = [x.new_ones(n + rank + 1, points) for _ in layers]  # [z; Vᵀ x; 1]
        self.out, self.tail = [value[:-1] for value in out], [value[n:].mT for value in out]
        self.out_parts = [(value[:kept], value[kept:n]) for value in out]
        back = x.new_empty(2, n + rank, points).unbind(0)  # [∂x; Uᵀ g], of one layer and the next in turn
        self.back = [(value, value[:n], value[n:].mT, (value[:kept], value[kept:n])) for value in back]
        self.grad_u_bias, self.grad_v = x.new_empty(count, n, rank + 1), x.new_empty(count, n, rank)
        self.grad_rows = list(zip(self.grad_u_bias.unbind(0), self.grad_v.unbind(0), strict=True))

    def buffers(self) -> list[Tensor]:
        """The large ones."""
        return [*self.stacks, self.blocks, *self.x, *self.out]

    def prepare(self, layers: Sequence[Sequence[Tensor]]) -> LogDeterminants:
        """The blocks of all layers, of tensors A, A⁻¹, U, V and b; and their log|det|."""
        for index, stack in enumerate(self.stacks):
            torch.stack([tensors[index] for tensors in layers], out=stack)
        (base, inverse, u, v), n = self.stacks, self.n
        if u.shape[-1] == 1:
            torch.addcmul(base, u, v.mT, out=self.blocks[:, :n, :n])
        else:
            torch.baddbmm(base, u, v.mT, out=self.blocks[:, :n, :n])
        self.blocks[:, :n, n:] = u
        self.blocks[:, n:, :n] = v.mT
        zero = base.new_zeros(n)
        torch.stack([tensors[4] if len(tensors) > 4 else zero for tensors in layers], out=self.shifts[:, :n, 0])
        return LogDeterminants(inverse, u, v)

    def forward(self, index: int, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of z. A coupling may have written b into `parts` already."""
        first, second = self.parts[index]
        first.copy_(a)
        if b is not second:
            second.copy_(b)
        torch.addmm(self.shift[index], self.forward_blocks[index], self.x[index], out=self.out[index])
        return self.out_parts[index]

    def backward(self, index: int, grad: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The gradient of x from that of z, and its two parts."""
        grad_u_bias, grad_v = self.grad_rows[index]
        both, grad_x, thin, parts = self.back[index % 2]
        torch.mm(grad, self.tail[index], out=grad_u_bias)
        torch.mm(self.backward_blocks[index], grad, out=both)
        torch.mm(self.x[index], thin, out=grad_v)
        return grad_x, parts

    def gradients(
        self, logdets: LogDeterminants, grad_total: Tensor, counts: Sequence[int]
    ) -> list[list[Tensor | None]]:
        """Of the tensors of each layer (`counts` says of how many), after all backward passes; none of A and A⁻¹."""
        logdet_u, logdet_v = logdets.gradients(grad_total.sum())
        rank = self.grad_v.shape[-1]
        grad_u, grad_v = self.grad_u_bias[..., :rank] + logdet_u, self.grad_v + logdet_v
        grad_bias = self.grad_u_bias[..., rank].clone(memory_format=torch.contiguous_format)
        rows = zip(grad_u.unbind(0), grad_v.unbind(0), grad_bias.unbind(0), strict=True)
        return [[None, None, *row][:count] for row, count in zip(rows, counts, strict=True)]


class LogDeterminants:
    """Σ log|det K_i| over the layers of a run, K_i = I + V_iᵀ A_i⁻¹ U_i, and its gradients

    ∂U_i = A_i⁻ᵀ V_i K_i⁻ᵀ,   ∂V_i = A_i⁻¹ U_i K_i⁻¹.

    A⁻¹ `(L, n, n)`, U and V `(L, n, k)`.
    """

    def __init__(self, inverse: Tensor, u: Tensor, v: Tensor) -> None:
        self.inverse, self.v, self.x_u = inverse, v, _times(inverse, u)
        self.capacitance = linalg.capacitance(self.x_u, v)

    def total(self) -> Tensor:
        """Σ log|det K_i| `()`."""
        return linalg.slogdet(self.capacitance)[1].sum()

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Those of U and V, `(L, n, k)`, times `grad` `()`."""
        single = self.capacitance.shape[-1] == 1  # LAPACK takes longer than all else; `inv_ex` refuses no singular one
        inverse_k = grad * (1 / self.capacitance if single else torch.linalg.inv_ex(self.capacitance)[0])
        return _times(self.inverse.mT, self.v @ inverse_k.mT), self.x_u @ inverse_k


def _times(matrix: Tensor, factor: Tensor) -> Tensor:
    """M F for stacks `(L, n, n)` and `(L, n, k)`: products by single columns take twice as long."""
    return (matrix * factor.mT).sum(-1, keepdim=True) if factor.shape[-1] == 1 else matrix @ factor
