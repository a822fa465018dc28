"""Bijections of images `(..., C, H, W)`: mixing of channels, scales of channels, space to depth."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.flows.bijection import Bijection, check_dtype
from p4torch.flows.linear import InvertibleLinear

M = TypeVar("M", bound=nn.Module)

#: Standard deviations below this count as this in `ActNorm2d.fit`: channels that are constant keep a finite scale.
LEAST_DEVIATION = 1e-3


class InvertibleConv1x1(Bijection):
    """z = W x + b at each pixel, W = R_B(A) `(C, C)`: a 1 x 1 convolution with log|det| = H W log|det W|.

    W is an `InvertibleLinear`, `linear`, with all of its options: invertible (P4Inv) by default, a rotation with
    `property=p4.Orthogonal`. A merge that would lead to a singular W, or near one, is refused by its bounds.

        InvertibleConv1x1(12, init="orthogonal")

    Args:
        channels: C.
        options: of `InvertibleLinear`.

    Raises:
        ArgumentError: C out of range; images of another number of channels, or with the channels last.

    Source: Kingma and Dhariwal (2018), Glow, section 3.2.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels, 1)
        self.linear = InvertibleLinear(channels, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_image(x, self.channels)
        z, logabsdet = self.linear(x.movedim(-3, -1))
        return z.movedim(-1, -3), pixels(x) * logabsdet

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_image(z, self.channels, name="z")
        x, logabsdet = self.linear.inverse(z.movedim(-3, -1))
        return x.movedim(-1, -3), pixels(z) * logabsdet


class Squeeze(Bijection):
    """Space to depth: `(..., C, H, W)` -> `(..., 4 C, H/2, W/2)`, each square of 2 x 2 pixels becomes 4 channels.

    `inverse` leads back. Volume preserving; entry c, 2 i + a, 2 j + b becomes 4 c + 2 a + b, i, j.

    Raises:
        ArgumentError: an odd height or width; a number of channels to go back from that 4 does not divide.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_image(x)
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            raise ArgumentError.of("x", "of even height and width", tuple(x.shape))
        squares = x.unflatten(-1, (x.shape[-1] // 2, 2)).unflatten(-3, (x.shape[-2] // 2, 2))
        return squares.movedim((-3, -1), (-4, -3)).flatten(-5, -3), x.new_zeros(())

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_image(z, name="z")
        if z.shape[-3] % 4:
            raise ArgumentError.of("z", "of 4 n channels", tuple(z.shape))
        squares = z.unflatten(-3, (z.shape[-3] // 4, 2, 2)).movedim((-4, -3), (-3, -1))
        return squares.flatten(-2).flatten(-3, -2), z.new_zeros(())


class ActNorm2d(Bijection):
    """z = x e^s + b with a scale and a shift for each channel, `(C,)` each: log|det| = H W Σ s.

    It starts as the identity. `fit` gives the channels of a batch mean 0 and variance 1, `fit_actnorm` those of all
    such layers of a model.

    Args:
        channels: C.

    Source: Kingma and Dhariwal (2018), Glow, section 3.1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels, 1)
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_image(x, self.channels, self.log_scale.dtype)
        z = x * self.log_scale.exp()[:, None, None] + self.shift[:, None, None]
        return z, pixels(x) * self.log_scale.sum()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_image(z, self.channels, self.log_scale.dtype, name="z")
        x = (z - self.shift[:, None, None]) * (-self.log_scale).exp()[:, None, None]
        return x, -pixels(z) * self.log_scale.sum()

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Scale and shift so that the channels of x `(..., C, H, W)` have mean 0 and variance 1.

        Raises:
            ArgumentError: no pixels at all.
        """
        check_image(x, self.channels, self.log_scale.dtype)
        rows = x.movedim(-3, 0).flatten(1).double()
        if rows.shape[1] == 0:
            raise ArgumentError.of("x", "with pixels", tuple(x.shape))
        self.log_scale.copy_(-rows.std(1, correction=0).clamp_min(LEAST_DEVIATION).log())
        self.shift.copy_(-rows.mean(1) * self.log_scale.exp())


@torch.no_grad()
def fit_actnorm(model: M, images: Tensor) -> M:
    """Fit every `ActNorm2d` of a model to what it sees of a batch, from data to latent, one after the other. The model.

    fit_actnorm(p4.flows.Glow(1, 8, 8), images)
    """
    layers = [module for module in model.modules() if isinstance(module, ActNorm2d)]
    handles = [layer.register_forward_pre_hook(lambda layer, inputs: layer.fit(*inputs)) for layer in layers]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return model


def pixels(x: Tensor) -> int:
    """H W."""
    return x.shape[-1] * x.shape[-2]


def check_image(
    x: Tensor,
    channels: int | None = None,
    dtype: torch.dtype | None = None,
    size: tuple[int, int] | None = None,
    *,
    name: str = "x",
) -> None:
    """Raises ArgumentError for anything but images `(..., C, H, W)` of these channels, dtype and size (height, width).

    What has its channels last is told to permute.
    """
    check_dtype(x, dtype, x.is_complex() if isinstance(x, Tensor) else False, name)
    wanted = ("C" if channels is None else channels, *(("H", "W") if size is None else size))
    shape = tuple(x.shape)
    if len(shape) >= 3 and channels in (None, shape[-3]) and size in (None, shape[-2:]):
        return
    expected, got = f"of shape (..., {', '.join(map(str, wanted))})", str(shape)
    if len(shape) >= 3 and shape[-1] == channels and size in (None, shape[-3:-1]):
        got += f": {name}.movedim(-1, -3) puts the channels first"
    raise ArgumentError.of(name, expected, got)
