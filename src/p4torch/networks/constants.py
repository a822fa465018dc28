"""Lipschitz constants of layers without weights, in the Euclidean norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

#: Largest slopes that have no closed form, rounded up: of x Φ(x) at √2 (the tanh form differs in the fifth digit), of
#: x ς(x), of x tanh(log(1 + eˣ)).
GELU, SILU, MISH = 1.13, 1.0999, 1.0885

#: Elementwise and monotone in [-1, 1] slopes, or moving entries about: constant 1.
_ONE = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.ReLU,
    nn.ReLU6,
    nn.Tanh,
    nn.Hardtanh,
    nn.Softsign,
    nn.LogSigmoid,
    nn.Softshrink,
    nn.Tanhshrink,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
)

#: torch's own threshold, from which on it takes x for log(1 + eˣ), which is e⁻ˣ larger: a jump of 1e-10 of the value.
#: At a lower one the jump is no matter of rounding, and there is no constant.
LINEAR_FROM = 20

_OTHERS: dict[type[nn.Module], Callable[[Any], float | None]] = {
    nn.Softplus: lambda layer: 1.0 if layer.beta and layer.threshold >= LINEAR_FROM else None,
    nn.CELU: lambda layer: 1.0 if layer.alpha > 0 else None,  # else it grows like e⁻ˣ
    nn.Softmax: lambda layer: 0.5,  # rows of |diag(p) - p pᵀ| sum to 2 pᵢ (1 - pᵢ)
    nn.Softmin: lambda layer: 0.5,
    nn.Sigmoid: lambda layer: 0.25,
    nn.Hardsigmoid: lambda layer: 0.1667,  # 1/6, rounded up: torch has it in single precision
    nn.Hardswish: lambda layer: 1.5,
    nn.SELU: lambda layer: 1.0507009873554805 * 1.6732632423543772,  # the slope left of 0
    nn.LeakyReLU: lambda layer: max(1.0, abs(layer.negative_slope)),
    nn.ELU: lambda layer: max(1.0, abs(layer.alpha)),
    nn.GELU: lambda layer: GELU,
    nn.SiLU: lambda layer: SILU,
    nn.Mish: lambda layer: MISH,
}


def lipschitz_constant(layer: nn.Module) -> float | None:
    """Of a layer that has no weights, for the whole tensor that it is given; None where none is known (attention, norms
    that divide by what they see, dropout, whose training mode enlarges, what jumps)."""
    if type(layer) in _ONE:
        return 1.0
    known = _OTHERS.get(type(layer), lambda layer: None)(layer)
    return None if known is None else float(known)
