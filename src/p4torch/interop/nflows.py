"""nflows: bijections of p4torch in its flows, its transforms in ours. Both lead from data to latent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.flows import Bijection
from p4torch.flows._context import mapped, spread
from p4torch.flows.bijection import check_event, check_is_bijection
from p4torch.interop._bijection import TransformBijection
from p4torch.interop._packages import needs

with needs("nflows"):
    from nflows.transforms.base import Transform


class BijectionTransform(Transform):  # type: ignore[misc]
    """A bijection as a transform of nflows: log-determinants are `(batch,)`, also where they are constant."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=True)

    def _map(self, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if context is None and self.bijection.context_features:
            raise ArgumentError.of("context", "given, since the bijection is conditional", None)
        outputs, logabsdet = mapped(self.bijection, inputs, context, inverse)
        return outputs, logabsdet.expand(inputs.shape[0])


class NflowsBijection(TransformBijection):
    """A transform of nflows, of vectors, as a bijection."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.features)
        return self._map(self.transform, x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event(z, self.features, name="z")
        return self._map(self.transform.inverse, z, context)

    def _map(self, direction: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """nflows knows one batch dimension."""
        if context is not None:
            x, context = spread(x, context)
            context = context.reshape(-1, self.context_features)
        y, logabsdet = direction(x.reshape(-1, self.features), context)
        return y.reshape(x.shape), logabsdet.reshape(x.shape[:-1])


def to_nflows(bijection: Bijection) -> Transform:
    """A bijection as a transform, for `CompositeTransform` and `Flow` of nflows. The context that nflows gives all its
    transforms reaches it if it is conditional.

    Raises:
        ArgumentError: no bijection.
    """
    check_is_bijection(bijection)
    return BijectionTransform(bijection)


def from_nflows(transform: Transform, features: int, context: int = 0) -> Bijection:
    """A transform of vectors as a bijection, for `Chain` and `Flow`.

    Args:
        transform: of nflows.
        features: n.
        context: how many features its context has, 0 for none.

    Raises:
        ArgumentError: no transform.
    """
    if not isinstance(transform, Transform):
        raise ArgumentError.of("transform", "a Transform of nflows", type(transform).__name__)
    return NflowsBijection(transform, features, context)
