"""Lipschitz constants of layers without weights, in the Euclidean norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
)

#: torch's own threshold, from which on it takes x for log(1 + eˣ), which is e⁻ˣ larger: a jump of 1e-10 of the value.
#: At a lower one the jump is no matter of rounding, and there is no constant.
LINEAR_FROM = 20


def overlap(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> int:
    """The largest number of windows that an entry of the input is in.

    Window i sees entry i s + j d at position j. Those j that see one entry differ by multiples of s / gcd(s, d), so of
    k positions along an axis at most ⌈k gcd(s, d) / s⌉ do: k at stride 1, one where s = k.
    """
    return math.prod(-(-k * math.gcd(s, d) // s) for k, s, d in zip(kernel, stride, dilation, strict=True))


def _axes(option: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    return (option,) * dimensions if isinstance(option, int) else tuple(option)


def _maximum(dimensions: int) -> Callable[[Any], float | None]:
    """√p of maxima over windows, p the number of those that see one entry: Σ max² <= Σ of all squares."""

    def constant(layer: Any) -> float | None:
        options = (layer.kernel_size, layer.stride, layer.dilation)
        return None if layer.return_indices else overlap(*(_axes(option, dimensions) for option in options)) ** 0.5

    return constant


def _average(dimensions: int) -> Callable[[Any], float | None]:
    """√(p K) / d of sums over windows of K entries divided by d: K by default. Windows that stick out may be divided by
    less, at least 1; a squared average is at most the sum of squares, so √p holds for all."""

    def constant(layer: Any) -> float | None:
        kernel, stride = _axes(layer.kernel_size, dimensions), _axes(layer.stride, dimensions)
        seen, entries = overlap(kernel, stride, (1,) * dimensions), math.prod(kernel)
        divisor = getattr(layer, "divisor_override", None)
        if divisor:
            return (seen * entries) ** 0.5 / abs(divisor)
        whole = layer.count_include_pad or not any(_axes(layer.padding, dimensions))
        return (seen / entries) ** 0.5 if whole and not layer.ceil_mode else seen**0.5

    return constant


def _to_one(layer: Any) -> float | None:
    """1 of pooling everything to one number; other sizes depend on the input's."""
    size, indices = layer.output_size, getattr(layer, "return_indices", False)
    return 1.0 if not indices and all(each == 1 for each in _axes(size, 1)) else None


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
    nn.MaxPool1d: _maximum(1),
    nn.MaxPool2d: _maximum(2),
    nn.MaxPool3d: _maximum(3),
    nn.AvgPool1d: _average(1),
    nn.AvgPool2d: _average(2),
    nn.AvgPool3d: _average(3),
    **dict.fromkeys(
        (
            nn.AdaptiveAvgPool1d,
            nn.AdaptiveAvgPool2d,
            nn.AdaptiveAvgPool3d,
            nn.AdaptiveMaxPool1d,
            nn.AdaptiveMaxPool2d,
            nn.AdaptiveMaxPool3d,
        ),
        _to_one,
    ),
}


def lipschitz_constant(layer: nn.Module) -> float | None:
    """Of a layer that has no weights, for the whole tensor that it is given; None where none is known (attention, norms
    that divide by what they see, dropout, whose training mode enlarges, what jumps)."""
    if type(layer) in _ONE:
        return 1.0
    constant = _OTHERS.get(type(layer), lambda layer: None)(layer)
    return None if constant is None else float(constant)
