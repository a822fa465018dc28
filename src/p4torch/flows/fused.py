"""The chain of linear layers and bent identities, in five operations a layer: fast where tensors are tiny.

A layer of two features costs next to nothing; what a training step of hundreds of them costs is the number of calls.
Here the loop holds only what is sequential. Everything else (log-determinants, derivatives, gradients of weights and
biases) is computed for all layers at once, before or after it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from p4torch.flows.activations import BentIdentity

_BENT = BentIdentity()


def readable_chain(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """z and Σ log|activation'| of linear layers `(L, n, n)`, `(L, n)` with B, B⁻¹, B, ... after them; x `(..., n)`."""
    total = x.new_zeros(())
    for index, (matrix, shift) in enumerate(zip(weight.unbind(0), bias.unbind(0), strict=True)):
        x, logabsdet = (_BENT.inverse if index % 2 else _BENT.forward)(x @ matrix.mT + shift)
        total = total + logabsdet
    return x, total


def readable_inverse(z: Tensor, inverse: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x and its Σ log|activation'| on the way back, with the inverses of the weights `(L, n, n)`."""
    total = z.new_zeros(())
    for index in range(len(bias) - 1, -1, -1):
        z, logabsdet = (_BENT.forward if index % 2 else _BENT.inverse)(z)
        z = (z - bias[index]) @ inverse[index].mT
        total = total + logabsdet
    return z, total


def fused_chain(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The same, fast. Differentiable any number of times (higher derivatives go through the readable chain)."""
    z, total = _FusedChain.apply(x.reshape(x.shape[:-1].numel(), x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return z.reshape(x.shape), total.reshape(x.shape[:-1])


class _FusedChain(torch.autograd.Function):
    """With p = W x + b, even layers are y = p + h/2 - 1/2, h = √(p² + 1); odd ones are y = (2/3)(c - h/2), c = 2p + 1,
    h = √(c² + 3). The constants 2, +1, -1/2 and 2/3 are folded into the weights and biases of the linear layers, so
    that a layer is: one affine map to q (= p or c), h = hypot(q, r), x' = q ± h/2. Its slope is d = 1 ± q/(2h).
    Points are columns inside.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        depth, n = bias.shape
        odd, scale = _scales(weight)
        folded = weight * scale
        shift = bias * torch.where(odd, 2, 1) + torch.where(odd, 1 - weight.sum(-1), 0)
        q = x.new_empty(depth, n, x.shape[0])
        h = torch.empty_like(q)
        points = x.new_empty(depth + 1, n, x.shape[0])
        points[0] = x.mT
        radius = [x.new_full((), 1.0), x.new_full((), math.sqrt(3))]
        half = (0.5, -0.5)
        layers = zip(folded.unbind(0), shift.unsqueeze(-1).unbind(0), q.unbind(0), h.unbind(0), strict=True)
        outputs = points.unbind(0)
        for index, (matrix, offset, q_i, h_i) in enumerate(layers):
            torch.addmm(offset, matrix, outputs[index], out=q_i)
            torch.hypot(q_i, radius[index & 1], out=h_i)
            torch.add(q_i, h_i, alpha=half[index & 1], out=outputs[index + 1])

        slope = q.div_(h)
        slope[0::2].mul_(0.5).add_(1)
        slope[1::2].mul_(-0.5).add_(1)
        total = slope.log().sum((0, 1)) + n * (depth // 2) * math.log(4 / 3)
        last = points[-1].mT
        z = last * (2 / 3) if depth % 2 == 0 else last - 0.5
        ctx.save_for_backward(x, weight, bias, slope, h, points, folded)
        return z, total

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias, slope, h, points, folded = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the gradient itself must be differentiable
            return torch.autograd.grad(  # type: ignore[return-value]
                readable_chain(x, weight, bias), (x, weight, bias), (grad_z, grad_total), create_graph=True
            )
        # d log(slope)/dq = ± r² / (2 h³ slope), r² = 1 and 3
        extra = grad_total / (h * h * h * slope)
        extra[0::2].mul_(0.5)
        extra[1::2].mul_(-1.5)
        grad_q = torch.empty_like(h)
        current = grad_z.mT * (2 / 3) if len(bias) % 2 == 0 else grad_z.mT
        layers = zip(extra.unbind(0), slope.unbind(0), grad_q.unbind(0), folded.mT.unbind(0), strict=True)
        for extra_i, slope_i, grad_i, matrix in reversed(list(layers)):
            torch.addcmul(extra_i, current, slope_i, out=grad_i)
            current = matrix @ grad_i

        odd, scale = _scales(weight)
        grad_shift = grad_q.sum(-1)
        grad_weight = grad_q @ points[:-1].mT * scale - torch.where(odd, grad_shift, 0).unsqueeze(-1)
        return current.mT, grad_weight, grad_shift * torch.where(odd, 2, 1)


def _scales(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Which layers are odd `(L, 1)`, and the factor folded into their weights `(L, 1, 1)`: c = 2p + 1 doubles the odd
    ones, the 2/3 of the activation before them scales the even ones but the first."""
    index = torch.arange(len(weight), device=weight.device)
    odd = (index % 2 == 1).unsqueeze(-1)
    scale = weight.new_full((len(weight), 1, 1), 2 / 3)
    scale[1::2] = 2
    scale[0] = 1
    return odd, scale
