"""Invertible linear layers with low-rank perturbations, on columns and with their backward pass written out: steps of
a fused run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p4torch import linalg


def readable_linear(
    x: Tensor, base: Tensor, inverse: Tensor, u: Tensor, v: Tensor, *bias: Tensor
) -> tuple[Tensor, Tensor]:
    """x (A + U Vᵀ)ᵀ + b for points `(P, n)` and log|det K| = log|det (A + U Vᵀ) / det A| `()`. Factors are `(n, k)`,
    `inverse` is A⁻¹, and the bias `(n,)` may be missing."""
    z = x @ (base + u @ v.mT).mT
    return z + bias[0] if bias else z, linalg.slogdet(linalg.capacitance(inverse @ u, v))[1]


class Linear:
    """The buffers of one layer and its two directions, on columns `(n, P)`: z = W x + b, W = A + U Vᵀ.

    Backwards, with the gradient g of z: ∂x = Wᵀ g, ∂b = g 1, and from ∂W = g xᵀ, which is not formed,
    ∂U = ∂W V = g (Vᵀ x)ᵀ and ∂V = ∂Wᵀ U = x (Uᵀ g)ᵀ.
    """

    def __init__(self, x: Tensor, tensors: Sequence[Tensor]) -> None:
        points, n = x.shape
        self.x, self.out = x.new_empty(n, points), x.new_empty(n, points)
        self.weight = x.new_empty(n, n)
        self.transposed = self.weight.mT
        self.kept = n - n // 2
        self.parts = self.out[: self.kept], self.out[self.kept :]

    def ascend(self, a: Tensor, b: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The two parts of z; `tensors` are A, A⁻¹, U, V and b."""
        base, _, u, v, *bias = tensors
        torch.cat([a, b], out=self.x)
        torch.addmm(base, u, v.mT, out=self.weight)
        if bias:
            torch.addmm(bias[0].unsqueeze(-1), self.weight, self.x, out=self.out)
        else:
            torch.mm(self.weight, self.x, out=self.out)
        return self.parts

    def descend(
        self, grad_a: Tensor, grad_b: Tensor, tensors: Sequence[Tensor], more_u: Tensor, more_v: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """The two parts of the gradient of x, and the gradients of the tensors, the last one first (none of A and A⁻¹,
        and `more` added to those of U and V)."""
        _, _, u, v, *bias = tensors
        grad = torch.cat([grad_a, grad_b])
        found: list[Tensor | None] = [grad.sum(-1)] if bias else []
        found.append(torch.addmm(more_v, self.x, (u.mT @ grad).mT))
        found.append(torch.addmm(more_u, grad, (v.mT @ self.x).mT))
        grad_x = self.transposed @ grad
        return grad_x[: self.kept], grad_x[self.kept :], [*found, None, None]


class Changes:
    """Σ log|det K_i| over the layers of a run, K_i = I + V_iᵀ A_i⁻¹ U_i, and its gradients

    ∂U_i = A_i⁻ᵀ V_i K_i⁻ᵀ,   ∂V_i = A_i⁻¹ U_i K_i⁻¹.
    """

    def __init__(self, layers: Sequence[Sequence[Tensor]]) -> None:
        self.inverses = [tensors[1] for tensors in layers]
        self.x_u = torch.stack([tensors[1] @ tensors[2] for tensors in layers])
        self.v = torch.stack([tensors[3] for tensors in layers])
        self.capacitance = linalg.capacitance(self.x_u, self.v)

    def total(self) -> Tensor:
        """Σ log|det K_i| `()`."""
        return linalg.slogdet(self.capacitance)[1].sum()

    def gradients(self, grad: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Those of U_i and V_i, layer by layer, times `grad` `()`."""
        inverted = grad * torch.linalg.inv_ex(self.capacitance)[0]
        grad_v, turned = self.x_u @ inverted, self.v @ inverted.mT
        grad_u = [inverse.mT @ value for inverse, value in zip(self.inverses, turned.unbind(0), strict=True)]
        return list(zip(grad_u, grad_v.unbind(0), strict=True))
