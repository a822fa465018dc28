"""Relative moves of a whole matrix, A (I + X), with what they do to the determinant: one autograd node for both."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.linalg.reference import reference_gradients, reference_wanted, transformed


def product_reference(base: Tensor, b: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """A K and log|det K| `(...)`, K = I + g B, for A and B `(..., n, n)`."""
    moving = linalg.eye_like(b) + gain * b
    return base @ moving, linalg.slogdet(moving)[1]


def product(base: Tensor, b: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """`product_reference`, fast where A is a constant."""
    if b.dtype not in (torch.float32, torch.float64) or base.requires_grad or transformed():
        return product_reference(base, b, gain)
    return _Product.apply(base, b, gain)  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """∂B = g (Aᵀ ∂W + ∂ℓ K⁻ᵀ) with W = A K and ℓ = log|det K|, from one LU factorisation of K."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, b: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        moving = gain * b
        moving.diagonal(dim1=-2, dim2=-1).add_(1)
        factors, pivots, _ = linalg.unbatched(torch.linalg.lu_factor_ex, moving)
        ctx.save_for_backward(base, b, factors, pivots)
        ctx.gain = gain
        return base @ moving, factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    @staticmethod
    def backward(ctx: Any, g: Tensor, change: Tensor) -> tuple[Tensor | None, ...]:
        base, b, factors, pivots = ctx.saved_tensors
        if reference_wanted(g, change):
            reference, needed = partial(product_reference, gain=ctx.gain), ctx.needs_input_grad[:2]
            return (*reference_gradients(reference, needed, (base, b), (g, change)), None)
        weighted = change[..., None, None] * linalg.eye_like(b)
        inverted = linalg.unbatched(_solved, factors, pivots.unsqueeze(-1), weighted)
        return None, (inverted + base.mT @ g).mul_(ctx.gain), None


def _solved(factors: Tensor, pivots: Tensor, right: Tensor) -> Tensor:
    """K⁻ᵀ right."""
    return torch.linalg.lu_solve(factors, pivots.squeeze(-1), right, adjoint=True)
