"""The chain of linear layers and bent identities, in four operations a layer: fast where tensors are tiny.

A layer of two features costs next to nothing; what a training step of hundreds of them costs is the number of calls.
Here the loop holds only what is sequential. Everything else (log-determinants, derivatives, gradients of weights and
biases) is computed for all layers at once, before or after it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from p4torch.flows._fused.workspace import Lease, Pool, bytes_of
from p4torch.flows.activations import BentIdentity
from p4torch.linalg.reference import reference_gradients, reference_wanted, transformed

_BENT = BentIdentity()

#: The bent identity is φ(p) - 1/2 and its inverse -K φ(-K (p + 1/2)), with φ(q) = q + h/2, h = √(q² + 1), K = 2/√3.
_K = 2 / math.sqrt(3)

#: So many slopes, between 1/2 and 3/2, are multiplied before the logarithm is taken: exact in any dtype, and cheaper.
_GROUP = 8


def chain_reference(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """z and Σ log|activation'| of linear layers `(L, n, n)`, `(L, n)` with B, B⁻¹, B, ... after them; x `(..., n)`."""
    total = x.new_zeros(())
    for index, (matrix, shift) in enumerate(zip(weight.unbind(0), bias.unbind(0), strict=True)):
        x, logabsdet = (_BENT.inverse if index % 2 else _BENT.forward)(x @ matrix.mT + shift)
        total = total + logabsdet
    return x, total


def chain_inverse(z: Tensor, inverse: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x and its Σ log|activation'| on the way back, with the inverses of the weights `(L, n, n)`."""
    total = z.new_zeros(())
    for index in range(len(bias) - 1, -1, -1):
        z, logabsdet = (_BENT.forward if index % 2 else _BENT.inverse)(z)
        z = (z - bias[index]) @ inverse[index].mT
        total = total + logabsdet
    return z, total


def fused_chain(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The same, fast. Differentiable any number of times (higher derivatives go through `chain_reference`)."""
    if transformed():
        return chain_reference(x, weight, bias)
    z, total = _FusedChain.apply(x.reshape(x.shape[:-1].numel(), x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return z.reshape(x.shape), total.reshape(x.shape[:-1])


class _FusedChain(torch.autograd.Function):
    """All layers are q_i = M_i φ(q_{i-1}) + s_i with one and the same φ: the constants of the two activations are
    folded into M and s. As φ(q) = q + h/2, a layer is one product of the block [M, M/2, s] with the columns [q; h; 1]
    of the layer before, and one h = hypot(q, 1). The first layer has [x; 0; 1] before it. Points are columns inside.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        depth, n = bias.shape
        lease = _lease(x, depth)
        space = lease.workspace
        _fold(weight, bias, out=space.blocks)
        space.columns[0, :n] = x.mT
        one, mm, hypot = space.one, torch.mm, torch.hypot
        for block, columns, q_i, h_i in space.forward_layers:
            mm(block, columns, out=q_i)
            hypot(q_i, one, out=h_i)
        torch.div(space.q, space.h, out=space.slope).mul_(0.5).add_(1)
        total = space.grouped_slope.prod(1).log().sum((0, 1)) + n * (depth // 2) * math.log(4 / 3)
        last = torch.add(space.q[-1], space.h[-1], alpha=0.5).mT
        ctx.save_for_backward(x, weight, bias)
        ctx.lease = lease
        return last.mul(-_K) if depth % 2 == 0 else last - 0.5, total

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if reference_wanted(grad_z, grad_total):
            return reference_gradients(chain_reference, ctx.needs_input_grad, (x, weight, bias), (grad_z, grad_total))
        depth, n = bias.shape
        space = ctx.lease.workspace
        space.matrices.copy_(space.blocks[..., :n].mT)
        # d log φ'/dq = 1/(2 h³ φ'): what comes from the log-determinants
        torch.mul(space.h, space.h, out=space.grad_q).mul_(space.h).mul_(space.slope)
        torch.div(grad_total / 2, space.grad_q, out=space.grad_q)
        current = grad_z.mT * (-_K if depth % 2 == 0 else 1)
        mm = torch.mm
        for matrix, grad_i, slope_i in space.backward_layers:
            mm(matrix, grad_i.addcmul_(current, slope_i), out=current)
        grad_x = current.mT if ctx.needs_input_grad[0] else None
        return grad_x, *_unfold_gradient(space.grad_q @ space.columns[:-1].mT)


class _Workspace:
    """Buffers of a chain of `depth` layers of the points `x` `(P, n)`, and their slices, layer by layer."""

    def __init__(self, x: Tensor, depth: int) -> None:
        points, n = x.shape
        self.columns = x.new_ones(depth + 1, 2 * n + 1, points)
        self.columns[0, n:-1] = 0
        self.q, self.h, self.one = self.columns[1:, :n], self.columns[1:, n:-1], x.new_ones(n, points)
        self.blocks = x.new_empty(depth, n, 2 * n + 1)
        inputs = self.columns[:-1].unbind(0)
        self.forward_layers = list(zip(self.blocks.unbind(0), inputs, self.q.unbind(0), self.h.unbind(0), strict=True))

        self.grouped_slope = x.new_ones(-(-depth // _GROUP), _GROUP, n, points)
        self.slope = self.grouped_slope.flatten(0, 1)[:depth]
        self.grad_q, self.matrices = x.new_empty(depth, n, points), x.new_empty(depth, n, n)
        layers = zip(self.matrices.unbind(0), self.grad_q.unbind(0), self.slope.unbind(0), strict=True)
        self.backward_layers = list(layers)[::-1]
        self.bytes = bytes_of([self.columns, self.one, self.blocks, self.grouped_slope, self.grad_q, self.matrices])


_POOL: Pool[_Workspace] = Pool()

#: Workspaces of up to so many numbers `(L, n, P)` a buffer are kept: beyond, allocating them costs next to nothing.
_SMALL = 2**20


def _lease(x: Tensor, depth: int) -> Lease[_Workspace]:
    keep = x.device.type == "cpu" and depth * x.numel() <= _SMALL  # CUDA has a pool, and streams, of its own
    return _POOL.lease((x.shape, x.dtype, x.device, depth), lambda: _Workspace(x, depth), keep)


def _fold(weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """The blocks [M, M/2, s] `(L, n, 2n + 1)`. M = W for the first layer and -K W for the others. Even layers have
    s = b; odd ones have s = -K (b + 1/2 - W 1/2), where they follow φ - 1/2 and precede -K φ(-K (p + 1/2))."""
    n = bias.shape[-1]
    matrix, half, shift = out[..., :n], out[..., n:-1], out[..., -1]
    shift.copy_(bias)
    shift[1::2].add_(0.5).sub_(weight[1::2].sum(-1), alpha=0.5).mul_(-_K)
    torch.mul(weight, -_K, out=matrix)
    matrix[0] = weight[0]
    torch.mul(matrix, 0.5, out=half)


def _unfold_gradient(grad_blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the weights and biases from that of their blocks."""
    n = grad_blocks.shape[-2]
    grad_weight = torch.add(grad_blocks[..., :n], grad_blocks[..., n:-1], alpha=0.5)
    grad_weight[1:].mul_(-_K)
    grad_bias = grad_blocks[..., -1].clone()
    grad_bias[1::2].mul_(-_K)
    grad_weight[1::2].sub_(grad_bias[1::2].unsqueeze(-1), alpha=0.5)
    return grad_weight, grad_bias
