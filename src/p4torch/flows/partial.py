"""A bijection of some of the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p4torch._options import check_indices
from p4torch.flows.bijection import Bijection, check_event, check_features


class Partial(Bijection):
    """Maps some features by a bijection of their own; the others pass.

    A linear layer does not map a circle onto itself: with angles among the features, it may mix the others only.

        Partial(60, range(43), InvertibleLinear(43))

    Args:
        features: n.
        chosen: which of them are mapped.
        bijection: of as many features.

    Raises:
        ArgumentError: for features that do not exist, or repeat.
    """

    structure = ("place",)
    place: Tensor

    def __init__(self, features: int, chosen: Sequence[int], bijection: Bijection) -> None:
        super().__init__()
        self.features = check_features(features)
        chosen = check_indices("chosen", chosen, self.features, least=1)
        self.bijection = bijection
        self.register_buffer("place", torch.tensor(chosen))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.features)
        z, logabsdet = self.bijection(x[..., self.place])
        return x.index_copy(-1, self.place, z), logabsdet

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_event(z, self.features, name="z")
        x, logabsdet = self.bijection.inverse(z[..., self.place])
        return z.index_copy(-1, self.place, x), logabsdet

    def extra_repr(self) -> str:
        return f"features={self.features}, chosen={self.place.tolist()}"
