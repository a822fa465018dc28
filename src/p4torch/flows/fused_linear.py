"""An invertible linear layer with a low-rank perturbation, on columns and with its backward pass written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.perturbation import Perturbation
from p4torch.properties import Invertible

Site = tuple[Perturbation, Tensor]


def readable_linear(x: Tensor, base: Tensor, u: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
    """x (A + U Vᵀ)ᵀ + b for points `(P, n)`, factors `(n, k)` and a bias `(n,)` or none."""
    z = x @ (base + u @ v.mT).mT
    return z + bias[0] if bias else z


class Linear:
    """The buffers of one layer and its two directions, on columns `(n, P)`: z = W x + b, W = A + U Vᵀ.

    Backwards, with the gradient g of z: ∂x = Wᵀ g, ∂b = g 1, and from ∂W = g xᵀ, which is not formed,
    ∂U = ∂W V = g (Vᵀ x)ᵀ and ∂V = ∂Wᵀ U = x (Uᵀ g)ᵀ.
    """

    def __init__(self, x: Tensor, tensors: Sequence[Tensor]) -> None:
        n = tensors[0].shape[-1]
        self.x, self.out = x.new_empty(n, x.shape[0]), x.new_empty(n, x.shape[0])
        self.weight = x.new_empty(n, n)
        self.transposed = self.weight.mT
        kept = n - n // 2
        self.parts = self.out[:kept], self.out[kept:]

    def ascend(self, a: Tensor, b: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The two parts of z."""
        base, u, v, *bias = tensors
        torch.cat([a, b], out=self.x)
        torch.addmm(base, u, v.mT, out=self.weight)
        if bias:
            torch.addmm(bias[0].unsqueeze(-1), self.weight, self.x, out=self.out)
        else:
            torch.mm(self.weight, self.x, out=self.out)
        return self.parts

    def descend(self, grad_a: Tensor, grad_b: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The two parts of the gradient of x, and the gradients of the tensors, the last one first (none of A)."""
        _, u, v, *bias = tensors
        grad = torch.cat([grad_a, grad_b])
        found = [grad.sum(-1)] if bias else []
        found += [self.x @ (u.mT @ grad).mT, grad @ (v.mT @ self.x).mT]
        grad_x = self.transposed @ grad
        kept = len(grad_a)
        return grad_x[:kept], grad_x[kept:], found


def additive(perturbation: Perturbation, base: Tensor) -> bool:
    """Whether R_B(A) = A + U Vᵀ with a frozen A."""
    return type(perturbation) is Invertible and perturbation.form_name == "additive" and not base.requires_grad


def total_logabsdet(sites: Sequence[Site]) -> Tensor:
    """Σ log|det R_B(A)| `()` over additive perturbations: those of one shape at once."""
    kinds: dict[torch.Size, list[Invertible]] = {}
    known = []
    for perturbation, base in sites:
        assert isinstance(perturbation, Invertible)
        known.append(perturbation.tracked.current(base).logabsdet)
        kinds.setdefault(perturbation.u.shape, []).append(perturbation)
    total = torch.stack(known).sum()
    with linalg.full_precision(total.device):
        for found in kinds.values():
            inverse = torch.stack([one.tracked.inverse for one in found])
            u, v = torch.stack([one.u for one in found]), torch.stack([one.v for one in found])
            total = total + found[0].form.change(inverse, u, v)[1].sum()
    return total.to(sites[0][1].dtype)
