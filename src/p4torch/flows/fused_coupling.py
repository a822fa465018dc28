"""An affine coupling with SiLU networks, on columns and with its backward pass written out: a step of a fused run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def readable_coupling(x: Tensor, log_alpha: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
    """[a, b] -> [a, b · e^s + t] for points `(P, n)` and log|det| = Σ s `(P,)`, with s = tanh(f(a)) · exp(log α),
    t = g(a). `layers` are weights `(2, out, in)` and biases `(2, 1, out)` of f and g in turn, SiLU between them."""
    a, b = x.split([layers[0].shape[-1], layers[-1].shape[-1]], dim=-1)
    y = a.expand(2, *a.shape)
    for index, (weight, bias) in enumerate(zip(layers[0::2], layers[1::2], strict=True)):
        y = torch.baddbmm(bias, F.silu(y) if index else y, weight.mT)
    log_scale = torch.tanh(y[0]) * log_alpha.exp()
    return torch.cat([a, b * log_scale.exp() + y[1]], dim=-1), log_scale.sum(-1)


class Scratch:
    """What the couplings of a run share: buffers as large as the layers of one, and constants."""

    def __init__(self, like: Coupling) -> None:
        self.layers = [torch.empty_like(p) for p in like.p]
        self.raw, self.shift = self.layers[-1].unbind(0)
        self.one, self.log2 = self.raw.new_ones(()), self.raw.new_full((), math.log(2))


class Coupling:
    """The buffers of one coupling and its two directions, on columns `(n, P)`. Both networks' first layers are one
    product. With the layers y_i = p_i ς(p_i), p_i = W_i y_{i-1} + b_i, ς(p) = 1/(1 + e⁻ᵖ), y_0 = a, and (p, t) the last
    p_i:

        s = α tanh p = α (2r - 1) with r = ς(2p),   b' = b e^s + t        (ς and 2ˣ are faster than tanh and eˣ)

    Backwards, with the gradients g of b' and l of log|det| = Σ s:

        ∂b = g e^s,   ∂t = g,   ∂s = b ∂b + l,   ∂p = 4 α r (1 - r) ∂s,   ∂log α = Σ s ∂s
    """

    def __init__(self, x: Tensor, tensors: Sequence[Tensor]) -> None:
        widths = [weight.shape[-2] for weight in tensors[1::2]]
        self.p = [x.new_empty(2, width, x.shape[0]) for width in widths]  # of hidden layers later dy/dp, in place
        self.y = [torch.empty_like(p) for p in self.p[:-1]]
        self.flat = self.p[0].flatten(0, 1)
        self.raw, self.shift = self.p[-1].unbind(0)  # p, later s / log 2; and t
        self.r, self.scale, self.out = (torch.empty_like(self.raw) for _ in range(3))
        self.a = self.b = self.out

    def ascend(
        self, a: Tensor, b: Tensor, tensors: Sequence[Tensor], alpha: Tensor, bits: Tensor, scratch: Scratch
    ) -> Tensor:
        """b' `(m, P)`, kept for the way back, too. Adds s / log 2 to `bits`; `tensors` are log α and the layers."""
        self.a, self.b = a, b
        torch.addmm(tensors[2].view(-1, 1), tensors[1].flatten(0, 1), a, out=self.flat)
        for index, y in enumerate(self.y):
            p, sigmoid = self.p[index], scratch.layers[index]
            torch.sigmoid(p, out=sigmoid)
            torch.mul(p, sigmoid, out=y)
            torch.lerp(y, scratch.one, sigmoid, out=p)  # dy/dp = y + ς(p) (1 - y)
            torch.baddbmm(tensors[2 * index + 4].mT, tensors[2 * index + 3], y, out=self.p[index + 1])
        r = torch.add(self.raw, self.raw, out=self.r).sigmoid_()
        most = alpha / scratch.log2
        torch.lerp(-most, most, r, out=self.raw)
        bits.add_(self.raw)
        torch.exp2(self.raw, out=self.scale)
        r.addcmul_(r, r, value=-1)
        return torch.addcmul(self.shift, b, self.scale, out=self.out)

    def descend(
        self,
        grad_a: Tensor,
        grad_b: Tensor,
        grad_total: Tensor,
        tensors: Sequence[Tensor],
        alpha: Tensor,
        scratch: Scratch,
    ) -> list[Tensor]:
        """Gradients of the tensors, the last one first. Those of a and b are updated in place."""
        scratch.shift.copy_(grad_b)
        grad_b.mul_(self.scale)
        grad_s = torch.addcmul(grad_total, grad_b, self.b, out=scratch.raw)
        grad_log_alpha = torch.dot(grad_s.view(-1), self.raw.view(-1)) * scratch.log2
        grad_s.mul_(self.r).mul_(4 * alpha)
        found, grad = [], scratch.layers[-1]
        for index in range(len(self.y) - 1, -1, -1):
            found += [grad.sum(-1, keepdim=True).mT, torch.bmm(grad, self.y[index].mT)]
            grad = torch.bmm(tensors[2 * index + 3].mT, grad, out=scratch.layers[index]).mul_(self.p[index])
        flat = grad.flatten(0, 1)
        found += [flat.sum(-1).view(2, 1, -1), (self.a @ flat.mT).mT.view_as(tensors[1]), grad_log_alpha]
        grad_a.addmm_(tensors[1].flatten(0, 1).mT, flat)
        return found
