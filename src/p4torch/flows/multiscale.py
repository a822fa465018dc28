"""Several scales of an image, of which a half of the channels leaves after each: from images to flat latents."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor, nn

from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.flows.bijection import Bijection, check_event
from p4torch.flows.images import Squeeze, check_image


class Multiscale(Bijection):
    """Images `(..., C, H, W)` to latents `(..., C H W)`, a `StandardNormal`'s say, over several levels:

        x_i `(C_i, H_i, W_i)` -> squeeze -> levels[i] -> the first half of the channels is x_(i+1), the other one latent

    The last level's channels are latent, all of them. Level i = 0, 1, ... maps images of 2^(i+2) C channels,
    H / 2^(i+1) by W / 2^(i+1), onto such: `shapes` has these.

        Flow(Multiscale(1, 8, 8, [level(4), level(8)]), StandardNormal(64))

    Args:
        channels, height, width: C, H and W; H and W divisible by 2 as often as there are levels.
        levels: a bijection each, which keeps the shape; a `Chain`, mostly.

    Raises:
        ArgumentError: no levels; sizes that cannot be halved so often; images of another size, or with the channels
            last; in a pass, a level that changes the shape.

    Source: Dinh, Sohl-Dickstein and Bengio (2017), RealNVP, section 3.6.
    """

    def __init__(self, channels: int, height: int, width: int, levels: Iterable[Bijection]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.squeeze = Squeeze()
        if not len(self.levels):
            raise ArgumentError.of("levels", "at least one bijection", "none")
        self.image = check_image_size(channels, height, width, len(self.levels))
        self.features = prod(self.image)

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """What each level maps, (channels, height, width)."""
        return level_shapes(*self.image, len(self.levels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channels, *size = self.image
        check_image(x, channels, size=(size[0], size[1]))
        total = x.new_zeros(())
        latent: list[Tensor] = []
        for level, shape in zip(self.levels, self.shapes, strict=True):
            x, logabsdet = level(self.squeeze(x)[0])
            _check_kept(x, shape)
            total = total + logabsdet
            if len(latent) + 1 < len(self.levels):
                x, leaving = x.chunk(2, dim=-3)
                latent.append(leaving.flatten(-3))
        return torch.cat([*latent, x.flatten(-3)], dim=-1), total

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_event(z, self.features, name="z")
        sizes = [prod(shape) // 2 for shape in self.shapes[:-1]]
        *latent, x = z.split([*sizes, self.features - sum(sizes)], dim=-1)
        total = z.new_zeros(())
        for index, shape in reversed(list(enumerate(self.shapes))):
            if index + 1 < len(self.shapes):
                x = torch.cat([x, latent[index].unflatten(-1, (shape[0] // 2, *shape[1:]))], dim=-3)
            else:
                x = x.unflatten(-1, shape)
            x, logabsdet = self.levels[index].inverse(x)  # type: ignore[operator]
            _check_kept(x, shape)
            x, total = self.squeeze.inverse(x)[0], total + logabsdet
        return x, total

    def extra_repr(self) -> str:
        return "channels={}, height={}, width={}".format(*self.image)


def level_shapes(channels: int, height: int, width: int, levels: int) -> list[tuple[int, int, int]]:
    """What the levels of a `Multiscale` map, (channels, height, width) each."""
    return [(channels << (level + 2), height >> (level + 1), width >> (level + 1)) for level in range(levels)]


def check_image_size(channels: int, height: int, width: int, levels: int) -> tuple[int, int, int]:
    """C, H and W, or an ArgumentError where they are no sizes that can be halved so often."""
    image = (
        check_integer("channels", channels, 1),
        check_integer("height", height, 1),
        check_integer("width", width, 1),
    )
    for name, size in zip(("height", "width"), image[1:], strict=True):
        if size % 2**levels:
            raise ArgumentError.of(name, f"a multiple of {2**levels}, for {levels} levels", size)
    return image


def _check_kept(x: Tensor, shape: tuple[int, int, int]) -> None:
    if x.shape[-3:] != shape:
        raise ArgumentError.of("levels", f"bijections that keep the shape (..., {shape})", tuple(x.shape))
