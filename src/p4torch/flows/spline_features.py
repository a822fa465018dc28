"""A monotone spline for each feature by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from p4torch._options import check_indices, check_integer
from p4torch.flows.bijection import Bijection, check_event, check_features
from p4torch.flows.monotone import check_angles, monotone, monotone_inverse


class Spline(Bijection):
    """Moves each feature by a monotone rational-quadratic spline of its own: a flow in one dimension, and marginals in
    more.

        on the line:    z = spline(x · eᵃ + b), the identity beyond ±5
        on the circle:  z = spline(wrap(x + b)) on [-π, π), with equal slopes at both ends

    It starts as the identity. Data should be standardised before it (`Standardize`). Angles are points of the circle:
    x and x + 2π are the same point with the same density, which integrates to 1 over one turn. `check_support` refuses
    angles beyond [-π, π).

    Args:
        features: n.
        circular: which of them are angles in [-π, π).
        bins: k of each spline.

    Raises:
        ArgumentError: for features that do not exist, or repeat; fewer than two bins.
    """

    structure = ("angle",)
    angle: Tensor

    def __init__(self, features: int, circular: Sequence[int] = (), bins: int = 8) -> None:
        super().__init__()
        self.features = check_features(features)
        angles = set(check_indices("circular", circular, self.features))
        self.bins = bins = check_integer("bins", bins, 2)
        self.register_buffer("angle", torch.tensor([[index in angles] for index in range(features)]))
        self._circular = bool(angles)
        self.raw = nn.Parameter(torch.zeros(3 * bins + 1, self.features, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.features, self.raw.dtype)
        z, slope = monotone(self._columns(x), self.raw, self.angle, self._circular)
        return z.mT.reshape(x.shape), slope.sum(0).reshape(x.shape[:-1])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_event(z, self.features, self.raw.dtype, name="z")
        x, slope = monotone_inverse(self._columns(z), self.raw, self.angle)
        return x.mT.reshape(z.shape), slope.sum(0).reshape(z.shape[:-1])

    def check_support(self, x: Tensor, context: Tensor | None = None) -> None:
        check_event(x, self.features)
        check_angles(x, self.angle.squeeze(-1).nonzero().flatten())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._circular = self.angle.is_meta or bool(self.angle.any())

    def _columns(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.features).mT

    def extra_repr(self) -> str:
        return f"features={self.features}, bins={self.bins}"
