"""Triangular factors on both sides of a matrix, (I + L) A (U + exp D), with log|det|: one autograd node for both."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.linalg.reference import reference_gradients, reference_wanted, transformed


def product_reference(base: Tensor, b: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """(I + L) A (U + exp D) and tr D `(...)`; L, D and U are the strictly lower, diagonal and strictly upper parts of
    g B, for A and B `(..., n, n)`."""
    scaled = gain * b
    diagonal = scaled.diagonal(dim1=-2, dim2=-1)
    lower, upper = scaled.tril(-1) + linalg.eye_like(b), scaled.triu(1) + torch.diag_embed(diagonal.exp())
    return lower @ base @ upper, diagonal.sum(-1)


def product(base: Tensor, b: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """`product_reference`, fast where A is a constant."""
    if b.dtype not in (torch.float32, torch.float64) or base.requires_grad or transformed():
        return product_reference(base, b, gain)
    return _Product.apply(base, b, gain)  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """With P = I + L, Q = U + exp D and W = P A Q: ∂P = ∂W (A Q)ᵀ and ∂Q = Aᵀ (Pᵀ ∂W). g times the strictly lower part
    of the one and the upper part of the other, whose diagonal is multiplied by exp D and added to, is ∂B."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, b: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        lower, upper = (gain * b).tril_(-1), (gain * b).triu_()
        lower.diagonal(dim1=-2, dim2=-1).fill_(1)
        diagonal = upper.diagonal(dim1=-2, dim2=-1)
        change, scales = diagonal.sum(-1), diagonal.exp()
        diagonal.copy_(scales)
        right = base @ upper
        ctx.save_for_backward(base, b, lower, right, scales)
        ctx.gain = gain
        return lower @ right, change

    @staticmethod
    def backward(ctx: Any, g: Tensor, change: Tensor) -> tuple[Tensor | None, ...]:
        base, b, lower, right, scales = ctx.saved_tensors
        if reference_wanted(g, change):
            reference, needed = partial(product_reference, gain=ctx.gain), ctx.needs_input_grad[:2]
            return (*reference_gradients(reference, needed, (base, b), (g, change)), None)
        grad = (base.mT @ (lower.mT @ g)).triu_()
        grad.diagonal(dim1=-2, dim2=-1).mul_(scales).add_(change.unsqueeze(-1))
        return None, grad.add_((g @ right.mT).tril_(-1)).mul_(ctx.gain), None
