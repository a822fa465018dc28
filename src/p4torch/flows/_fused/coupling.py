"""An affine coupling with SiLU networks, on columns and with its backward pass written out: a step of a fused run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def coupling_reference(x: Tensor, log_alpha: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
    """[a, b] -> [a, b · e^s + t] for points `(P, n)` and log|det| = Σ s `(P,)`, with s = tanh(f(a)) · exp(log α),
    t = g(a). `layers` are weights `(2, out, in)` and biases `(2, 1, out)` of f and g in turn, SiLU between them; the
    first bias may be one for each point, `(2, P, out)`: see `with_context`."""
    a, b = x.split([layers[0].shape[-1], layers[-1].shape[-1]], dim=-1)
    log_scale, shift = _scale_and_shift(a, log_alpha, layers)
    return torch.cat([a, b * log_scale.exp() + shift], dim=-1), log_scale.sum(-1)


def coupling_inverse_reference(z: Tensor, log_alpha: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse: [a, b'] -> [a, (b' - t) e^-s] and log|det| = -Σ s."""
    a, b = z.split([layers[0].shape[-1], layers[-1].shape[-1]], dim=-1)
    log_scale, shift = _scale_and_shift(a, log_alpha, layers)
    return torch.cat([a, (b - shift) * (-log_scale).exp()], dim=-1), -log_scale.sum(-1)


def _scale_and_shift(a: Tensor, log_alpha: Tensor, layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """s and t."""
    y = a.expand(2, *a.shape)
    for index, (weight, bias) in enumerate(zip(layers[0::2], layers[1::2], strict=True)):
        y = torch.baddbmm(bias, F.silu(y) if index else y, weight.mT)
    return torch.tanh(y[0]) * log_alpha.exp(), y[1]


def with_context(context: Tensor, kept: int, log_alpha: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
    """The tensors of a coupling whose networks see [a, c], for points with contexts `(P, c)`, as those of one whose
    networks see a: the first layer W [a; c] + d = W_a a + (W_c c + d) has a bias for each point, `(2, P, out)`."""
    weight, bias, *rest = layers
    columns = context.mT.expand(2, *context.mT.shape)
    shift = torch.baddbmm(bias.mT, weight[..., kept:], columns).mT
    return log_alpha, weight[..., :kept], shift, *rest


class Scratch:
    """What the couplings of a run share: buffers of the size of one, which stay in the cache, and constants."""

    def __init__(self, x: Tensor, widths: Sequence[int]) -> None:
        self.layers = [x.new_empty(2, width, x.shape[0]) for width in widths]
        self.raw, self.shift = self.layers[-1].unbind(0)
        self.log2_scale, self.product = torch.empty_like(self.raw), torch.empty_like(self.raw)
        self.flat = self.layers[0].flatten(0, 1)
        self.flat_t = self.flat.mT
        self.one, self.minus_one = x.new_ones(()), -x.new_ones(())

    def buffers(self) -> list[Tensor]:
        """The large ones."""
        return [*self.layers, self.log2_scale, self.product]


class FusedCoupling:
    """The buffers of one coupling, and its forward and backward pass on columns `(n, P)`. Both networks' first layers
    are one product. With the layers y_i = p_i ς(p_i), p_i = W_i y_{i-1} + b_i, ς(p) = 1/(1 + e⁻ᵖ), y_0 = a, and (p, t)
    the last p_i:

        s = α h with h = tanh p = 2 ς(2p) - 1,   b' = b e^s + t        (ς and 2ˣ are faster than tanh and eˣ)

    Backward, with the gradients g of b' and l of log|det| = Σ s:

        ∂b = g e^s,   ∂t = g,   ∂s = b ∂b + l,   ∂p = α (1 - h²) ∂s,   ∂log α = α Σ h ∂s

    The inverse, b = (b' - t) e^-s with log|det| = -Σ s, has instead, with the gradient g of b,

        ∂b' = g e^-s,   ∂t = -∂b',   ∂s = -(b g + l).
    """

    def __init__(self, x: Tensor, tensors: Sequence[Tensor], inverse: bool = False) -> None:
        widths = layer_widths(tensors)
        self.inverse = inverse
        self.slope = [x.new_empty(2, width, x.shape[0]) for width in widths[:-1]]  # dy/dp, and p before it
        self.y = [torch.empty_like(p) for p in self.slope]
        self.y_t = [y.mT for y in self.y]
        self.flat = self.slope[0].flatten(0, 1) if self.slope else None  # the first layer of both networks
        self.tanh, self.scale, self.out = (x.new_empty(widths[-1], x.shape[0]) for _ in range(3))
        self.a = self.b = self.out

    def buffers(self) -> list[Tensor]:
        """The large ones."""
        return [*self.slope, *self.y, self.tanh, self.scale, self.out]

    def forward(
        self, a: Tensor, b: Tensor, tensors: Sequence[Tensor], factor: Tensor, log2_total: Tensor, scratch: Scratch
    ) -> Tensor:
        """b' `(m, P)`, or b of the inverse; kept for the backward pass, too. Adds the log2 scale, ±s / log 2, to
        `log2_total`; `tensors` are log α and the layers, `factor` is ±α / log 2."""
        self.a, self.b = a, b
        flat = scratch.flat if self.flat is None else self.flat
        torch.addmm(tensors[2].mT.flatten(0, 1), tensors[1].flatten(0, 1), a, out=flat)
        after = [*self.slope[1:], scratch.layers[-1]]
        for index, (p, y, sigmoid) in enumerate(zip(self.slope, self.y, scratch.layers, strict=False)):
            torch.sigmoid(p, out=sigmoid)
            torch.mul(p, sigmoid, out=y)
            torch.lerp(y, scratch.one, sigmoid, out=p)  # dy/dp = y + ς(p) (1 - y)
            torch.baddbmm(tensors[2 * index + 4].mT, tensors[2 * index + 3], y, out=after[index])
        raw = scratch.raw
        torch.add(raw, raw, out=raw).sigmoid_()
        torch.lerp(scratch.minus_one, scratch.one, raw, out=self.tanh)
        log2_total.add_(torch.mul(self.tanh, factor, out=scratch.log2_scale))
        torch.exp2(scratch.log2_scale, out=self.scale)
        if self.inverse:
            return torch.sub(b, scratch.shift, out=self.out).mul_(self.scale)
        return torch.addcmul(scratch.shift, b, self.scale, out=self.out)

    def backward(
        self,
        grad_a: Tensor,
        grad_b: Tensor,
        grad_total: Tensor,
        tensors: Sequence[Tensor],
        alpha: Tensor,
        scratch: Scratch,
    ) -> list[Tensor | None]:
        """Gradients of the tensors. Those of a and b are updated in place."""
        if self.inverse:
            grad_s = torch.addcmul(grad_total, grad_b, self.out, out=scratch.raw).neg_()
            torch.neg(grad_b.mul_(self.scale), out=scratch.shift)
        else:
            scratch.shift.copy_(grad_b)
            grad_b.mul_(self.scale)
            grad_s = torch.addcmul(grad_total, grad_b, self.b, out=scratch.raw)
        product = torch.mul(grad_s, self.tanh, out=scratch.product)
        grad_log_alpha = product.sum() * alpha
        grad_s.addcmul_(product, self.tanh, value=-1).mul_(alpha)
        gradients: list[Tensor | None] = []  # the last one first
        grad = scratch.layers[-1]
        for index in range(len(self.y) - 1, -1, -1):
            gradients += [grad.sum(-1, keepdim=True).mT, torch.bmm(grad, self.y_t[index])]
            grad = torch.bmm(tensors[2 * index + 3].mT, grad, out=scratch.layers[index]).mul_(self.slope[index])
        first = tensors[1]
        of_bias = grad.sum(-1, keepdim=True) if tensors[2].shape[1] == 1 else grad.clone()  # of one for each point
        gradients += [of_bias.mT, (self.a @ scratch.flat_t).mT.view_as(first), grad_log_alpha]
        grad_a.addmm_(first.flatten(0, 1).mT, scratch.flat)
        return gradients[::-1]


def layer_widths(tensors: Sequence[Tensor]) -> list[int]:
    """Of the layers of a coupling, without the input."""
    return [weight.shape[-2] for weight in tensors[1::2]]
