"""zuko: bijections of p4torch in its flows, its transforms in ours. Both lead from data to latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.flows import Bijection, Transform
from p4torch.flows._context import spread
from p4torch.flows.bijection import check_event, check_is_bijection
from p4torch.interop._bijection import TransformBijection
from p4torch.interop._packages import needs

with needs("zuko"):
    # zuko switches off the checks of arguments of all distributions of torch
    _VALIDATES = torch.distributions.Distribution._validate_args
    from zuko.lazy import LazyTransform

    torch.distributions.Distribution.set_default_validate_args(_VALIDATES)


class BijectionTransform(LazyTransform):  # type: ignore[misc]
    """A bijection as a lazy transform of zuko. One that is not conditional gets no context: it may stand anywhere in a
    conditional flow."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, c: Tensor | None = None) -> torch.distributions.Transform:
        return Transform(self.bijection, c if self.bijection.context_features else None).inv


class ZukoBijection(TransformBijection):
    """A lazy transform of zuko, of vectors, as a bijection."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(x, context, "x")

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(z, context, "z")

    def _map(self, x: Tensor, context: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
        check_event(x, self.features, name=name)
        if context is not None:
            x, context = spread(x, context)
        transform: Any = self.transform(context)
        y, logabsdet = (transform if name == "x" else transform.inv).call_and_ladj(x)
        missing = logabsdet.dim() - (x.dim() - 1)  # of transforms that act feature by feature
        return y, logabsdet.sum(tuple(range(-missing, 0))) if missing else logabsdet


def to_zuko(bijection: Bijection) -> LazyTransform:
    """A bijection as a lazy transform, for `zuko.flows.Flow`. The context that zuko gives all its transforms reaches it
    if it is conditional.

        zuko.flows.Flow([flow.transform.transforms[0], to_zuko(InvertibleLinear(3)), ...], flow.base)

    Raises:
        ArgumentError: no bijection.
    """
    check_is_bijection(bijection)
    return BijectionTransform(bijection)


def from_zuko(transform: LazyTransform, features: int, context: int = 0) -> Bijection:
    """A lazy transform of vectors as a bijection, for `Chain` and `Flow`.

    Args:
        transform: of zuko; a single one, or the `transform` of a flow.
        features: n.
        context: how many features its context has, 0 for none.

    Raises:
        ArgumentError: no lazy transform.
    """
    if not isinstance(transform, LazyTransform):
        raise ArgumentError.of("transform", "a LazyTransform of zuko", type(transform).__name__)
    return ZukoBijection(transform, features, context)
