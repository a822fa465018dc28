"""A bijection of some of the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p4torch._options import check_indices
from p4torch.errors import ArgumentError
from p4torch.flows._context import joint_batch, mapped
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

    @property
    def context_features(self) -> int:  # type: ignore[override]
        """That of the bijection."""
        return self.bijection.context_features

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.features)
        return self._map(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event(z, self.features, name="z")
        return self._map(z, context, inverse=True)

    def _map(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if context is not None:
            x = x.expand(*joint_batch(x.shape[:-1], context), self.features)
        moved, logabsdet = mapped(self.bijection, x[..., self.place], context, inverse)
        return x.index_copy(-1, self.place, moved), logabsdet

    def fit_scale(self, x: Tensor, context: Tensor | None = None) -> None:
        check_event(x, self.features)
        self.bijection.fit_scale(x[..., self.place], context)

    def check_support(self, x: Tensor, context: Tensor | None = None) -> None:
        check_event(x, self.features)
        try:
            self.bijection.check_support(x[..., self.place], context)
        except ArgumentError as error:
            raise ArgumentError(f"{error}, counted among features {self.place.tolist()}") from error

    def extra_repr(self) -> str:
        return f"features={self.features}, chosen={self.place.tolist()}"
