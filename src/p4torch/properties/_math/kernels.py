"""Which `Convolution` a layer is, by its options as torch has them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

from torch import nn

from p4torch._options import check_choice, check_integer, is_integer
from p4torch.errors import ArgumentError
from p4torch.properties._math.convolution import TRAINING, Convolution

Sizes = int | Iterable[int]
Padding = Sizes | str

FORWARD = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layer_options(module: nn.Module, tensor_name: str) -> dict[str, Any]:
    """What a layer says of its kernel: the options of `convolution` but the size. A transposed convolution is the
    adjoint of the one that has its kernel, and has its norm."""
    if not isinstance(module, (*FORWARD, *TRANSPOSED)) or tensor_name != "weight":
        return {}
    names = ("stride", "dilation", "groups", *(() if isinstance(module, TRANSPOSED) else ("padding", "padding_mode")))
    return {name: getattr(module, name) for name in names}


def convolution(
    kernel: tuple[int, ...],
    size: Sizes | None = None,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    groups: int = 1,
    padding: Padding = 0,
    padding_mode: str = "zeros",
) -> Convolution:
    """The map of a kernel `(out, in / groups, *positions)`, for images of a size, or of any.

    Raises:
        ArgumentError: options out of range; a padding mode that repeats pixels; circular padding that makes more
            outputs than there are pixels, or of images whose size is not known to be a multiple of the stride.
    """
    axes = len(kernel) - 2
    steps = axes_of("stride", stride, axes, 1)
    spacing = axes_of("dilation", dilation, axes, 1)
    groups = check_integer("groups", groups, 1)
    if kernel[0] % groups:
        raise ArgumentError.of("groups", f"a divisor of {kernel[0]} channels", groups)
    check_choice("padding_mode", padding_mode, ("zeros", "circular"), "zeros or circular")
    sizes = None if size is None else axes_of("size", size, axes, 1)
    around = _padding(padding, kernel[2:], spacing)
    if padding_mode == "circular":
        return _circular(kernel, steps, spacing, groups, around, sizes)
    return _zeros(kernel, steps, spacing, groups, around, sizes)


def axes_of(name: str, option: Any, axes: int, least: int) -> tuple[int, ...]:
    """One integer for each axis, or an ArgumentError."""
    values = (option,) * axes if is_integer(option) else option
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ArgumentError.of(name, f"an integer, or {axes}", repr(option))
    values = tuple(values)
    if len(values) != axes:
        raise ArgumentError.of(name, f"an integer, or {axes}", repr(option))
    return tuple(check_integer(name, value, least) for value in values)


def _padding(padding: Padding, positions: tuple[int, ...], dilation: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pixels before and after, along each axis."""
    if padding == "same":
        totals = [step * (size - 1) for size, step in zip(positions, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    values = axes_of("padding", 0 if padding == "valid" else padding, len(positions), 0)
    return [(value, value) for value in values]


def _circular(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    padding: list[tuple[int, int]],
    size: tuple[int, ...] | None,
) -> Convolution:
    extents = [step * (count - 1) + 1 for count, step in zip(kernel[2:], dilation, strict=True)]
    if any(before + after >= extent for (before, after), extent in zip(padding, extents, strict=True)):
        raise ArgumentError.of("padding", "less in all than the extent of the kernel, if it is circular", padding)
    if size is None:
        if any(step > 1 for step in stride):
            raise ArgumentError.of("size", "given for circular padding with a stride, which has to divide it", None)
        return Convolution(kernel, stride, (1,) * len(stride), groups)
    for pixels, step, extent in zip(size, stride, extents, strict=True):
        if pixels % step or pixels < extent:
            expected = f"multiples of the stride {stride}, not below the extents {tuple(extents)} of the kernel"
            raise ArgumentError.of("size", f"{expected}, for circular padding", size)
    return Convolution(kernel, stride, dilation, groups, size)


def _zeros(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    padding: list[tuple[int, int]],
    size: tuple[int, ...] | None,
) -> Convolution:
    """With the smallest torus of which it is a part: one side of zeros serves both ends. The infinite grid, where that
    takes fewer frequencies, or where the torus is smaller than the kernel."""
    steps = tuple(step // math.gcd(step, wide) for step, wide in zip(stride, dilation, strict=True))
    plain = Convolution(kernel, steps, (1,) * len(steps), groups)
    if size is None:
        return plain
    torus = []
    for pixels, step, wide, count, sides in zip(size, steps, dilation, kernel[2:], padding, strict=True):
        side = min(-(-max(sides) // wide), count - 1)  # further out, windows see nothing else
        torus.append(step * -(-(-(-pixels // wide) + side) // step))
    counts, _ = plain.samples(next(count for short, count in TRAINING if plain.short <= short))
    points = math.prod(points // step for points, step in zip(torus, steps, strict=True))
    if points > math.prod(counts) or any(points < count for points, count in zip(torus, kernel[2:], strict=True)):
        return plain
    return Convolution(kernel, steps, (1,) * len(steps), groups, cast("tuple[int, ...]", tuple(torus)), twisted=True)
