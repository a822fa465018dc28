"""The recurrent network of `examples.recurrent`.

    h_t = modReLU(W h_{t-1} + e(x_t); b),   modReLU(z; b) = sign(z) max(|z| + b, 0)

W is read once a forward pass, whatever keeps it orthogonal. It starts as a block-diagonal matrix of rotations.

Source: Henaff, Szlam and LeCun (2016), Recurrent orthogonal networks and long-memory tasks, for the start; Helfrich,
Willmott and Ye (2018), Orthogonal recurrent neural networks with scaled Cayley transform, for modReLU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Network(nn.Module):
    """Logits `(t, m, outputs)` from `(t, m)` integers, if `symbols` says how many there are, else `(t, m)` numbers."""

    def __init__(self, hidden: int, outputs: int, symbols: int | None = None) -> None:
        super().__init__()
        self.recurrent = nn.Parameter(rotations(hidden))
        self.threshold = nn.Parameter(torch.empty(hidden).uniform_(-0.01, 0.01))
        self.symbols = symbols
        self.input = nn.Parameter(torch.randn(symbols or 1, hidden) / hidden**0.5)
        self.output = nn.Linear(hidden, outputs)

    def states(self, x: Tensor) -> Tensor:
        """h_1 to h_t `(t, m, hidden)`."""
        moved = F.embedding(x, self.input) if self.symbols else x.unsqueeze(-1) * self.input
        return recurrence(self.recurrent, moved, self.threshold)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.states(x))

    def last(self, x: Tensor) -> Tensor:
        """The logits after the last input alone `(m, outputs)`."""
        return self.output(self.states(x)[-1])


def rotations(n: int) -> Tensor:
    """Blocks [[cos θ, -sin θ], [sin θ, cos θ]] on the diagonal of `(n, n)`, θ uniform in (-π, π)."""
    angle = torch.empty(n // 2).uniform_(-math.pi, math.pi)
    cos, sin = angle.cos(), angle.sin()
    return torch.block_diag(*torch.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2))


def recurrence_reference(weight: Tensor, x: Tensor, threshold: Tensor) -> Tensor:
    """All states `(t, m, n)` from moved inputs `(t, m, n)`, starting at 0."""
    h, states = torch.zeros_like(x[0]), []
    for now in x.unbind(0):
        z = torch.addmm(now, h, weight.mT)
        h = z.sign() * F.relu(z.abs() + threshold)
        states.append(h)
    return torch.stack(states)


def recurrence(weight: Tensor, x: Tensor, threshold: Tensor) -> Tensor:
    """`recurrence_reference`, fast."""
    return _Recurrence.apply(weight, x, threshold)  # type: ignore[no-untyped-call]


class _Recurrence(torch.autograd.Function):
    """Backpropagation through time by hand: ∂z_t = (∂h_t + ∂z_{t+1} W) where h_t ≠ 0, and ∂W = Σ ∂z_tᵀ h_{t-1} in one
    product at the end."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, threshold: Tensor) -> Tensor:
        h, z, transposed = x.new_zeros(x.shape[0] + 1, *x.shape[1:]), x.clone(), weight.mT.contiguous()
        for t, now in enumerate(z.unbind(0)):
            now.addmm_(h[t], transposed)
            torch.copysign(now.abs().add_(threshold).clamp_min_(0), now, out=h[t + 1])
        ctx.save_for_backward(weight, h, z)
        return h[1:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        weight, h, z = ctx.saved_tensors
        active, d = (h[1:] != 0).to(g.dtype), torch.empty_like(g)
        torch.mul(g[-1], active[-1], out=d[-1])
        for t in range(len(g) - 2, -1, -1):
            torch.addmm(g[t], d[t + 1], weight, out=d[t]).mul_(active[t])
        n = g.shape[-1]
        turned = d.reshape(-1, n).mT @ h[:-1].reshape(-1, n) if ctx.needs_input_grad[0] else None
        return turned, d, (d * z.sign()).sum((0, 1))
