"""Affine coupling of channels, by a convolutional network."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from p4torch._options import check_integer
from p4torch.flows.bijection import Bijection
from p4torch.flows.images import check_image


class ConvCoupling(Bijection):
    """[a, b] -> [a, b · e^s + t] for images `(..., C, H, W)`: a has ⌈C/2⌉ channels, and sets a scale and a shift for
    each entry of the others, s = tanh(f(a)) · exp(log α) and t = g(a).

    (f, g) is one network of three convolutions, 3 x 3, 1 x 1 and 3 x 3, with ReLU between them, and log α one scalar.
    The last convolution starts at zero, so the coupling starts as the identity.

    Args:
        channels: C >= 2.
        hidden: channels between the convolutions.

    Raises:
        ArgumentError: for numbers out of range; for images of another number of channels, or with the channels last.

    Source: Dinh, Sohl-Dickstein and Bengio (2017), RealNVP; Kingma and Dhariwal (2018), Glow, for the network.
    """

    def __init__(self, channels: int, hidden: int = 64) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels, 2)
        hidden = check_integer("hidden", hidden, 1)
        self.changed = channels // 2
        last = nn.Conv2d(hidden, 2 * self.changed, 3, padding=1)
        for value in last.parameters():
            nn.init.zeros_(value)
        self.net = nn.Sequential(
            nn.Conv2d(channels - self.changed, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            last,
        )
        self.log_alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b, log_scale, shift = self._split(x, "x")
        return torch.cat([a, b * log_scale.exp() + shift], dim=-3), log_scale.sum((-3, -2, -1))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        a, b, log_scale, shift = self._split(z, "z")
        return torch.cat([a, (b - shift) * (-log_scale).exp()], dim=-3), -log_scale.sum((-3, -2, -1))

    def _split(self, x: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_image(x, self.channels, self.log_alpha.dtype, name=name)
        a, b = x.split([self.channels - self.changed, self.changed], dim=-3)
        rows = a.reshape(prod(a.shape[:-3]), *a.shape[-3:])
        made = self.net(rows).reshape(*a.shape[:-3], 2 * self.changed, *a.shape[-2:])
        scale, shift = made.split(self.changed, dim=-3)
        return a, b, torch.tanh(scale) * self.log_alpha.exp(), shift

    def extra_repr(self) -> str:
        return f"channels={self.channels}"
