"""A bijection as a transform of `torch.distributions`, and of all that builds on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from p4torch.flows._context import check_context, joint_batch, mapped
from p4torch.flows.bijection import Bijection, check_is_bijection


class Transform(torch.distributions.Transform):
    """z -> x, from latent to data: `bijection.inverse`, of one context if the bijection is conditional. With it

        TransformedDistribution(base, Transform(bijection))

    is the density of `Flow(bijection, base)`; `Transform(bijection).inv` leads from data to latent. Both take vectors
    (`event_dim` 1), and `log_abs_det_jacobian` comes from the pass that made the pair of points, if it was the last.

    With `cache_size=1` the last pair of points serves both directions, as torch has it. It is forgotten when the
    bijection trains or merges. Parameters are those of the bijection: give them to the optimizer.

    Args:
        bijection: of vectors.
        context: `(..., c)`; its batch becomes that of the distribution.
        cache_size: 0 or 1.

    Raises:
        ArgumentError: no bijection; a context that is missing, superfluous, or of another size.

    Example:
        >>> import torch
        >>> from p4torch.flows import AffineCoupling, Transform
        >>> normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> law = torch.distributions.TransformedDistribution(normal, Transform(AffineCoupling(2)))
        >>> law.log_prob(law.rsample((5,))).shape
        torch.Size([5])
    """

    bijective = True
    domain = codomain = constraints.real_vector

    def __init__(self, bijection: Bijection, context: Tensor | None = None, cache_size: int = 0) -> None:
        check_is_bijection(bijection)
        check_context(bijection, context)
        super().__init__(cache_size=cache_size)
        self.bijection, self.context = bijection, context
        self._last: tuple[Tensor | None, Tensor | None, Tensor | None] = None, None, None  # z, x, log|det ∂x/∂z|
        self._state: tuple[Any, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Copies begin without the last pair of points, which may have a graph."""
        state = {**super().__getstate__(), "_last": (None, None, None)}  # type: ignore[no-untyped-call]
        return state | ({"_cached_x_y": (None, None)} if self._cache_size else {})

    def with_cache(self, cache_size: int = 1) -> Transform:
        return self if cache_size == self._cache_size else Transform(self.bijection, self.context, cache_size)

    def __call__(self, x: Tensor) -> Tensor:
        self._forget_what_is_old()
        return super().__call__(x)  # type: ignore[no-untyped-call]

    def _inv_call(self, y: Tensor) -> Tensor:
        self._forget_what_is_old()
        return super()._inv_call(y)  # type: ignore[no-untyped-call]

    def _call(self, x: Tensor) -> Tensor:
        y, logabsdet = mapped(self.bijection, x, self.context, inverse=True)
        self._last = x, y, logabsdet
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, logabsdet = mapped(self.bijection, y, self.context)
        self._last = x, y, -logabsdet
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det ∂y/∂x| `(...)` of a pair of points, y = self(x)."""
        last_x, last_y, logabsdet = self._last
        if logabsdet is None or x is not last_x or y is not last_y:
            logabsdet = -mapped(self.bijection, y, self.context)[1]
        return logabsdet.expand(y.shape[:-1])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """With the batch of the context."""
        if self.context is None:
            return torch.Size(shape)
        return torch.Size((*joint_batch(shape[:-1], self.context), shape[-1]))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """With the batch of the context."""
        return self.forward_shape(shape)

    def _forget_what_is_old(self) -> None:
        """A cached pair is of the parameters that there were, and has a graph or none."""
        if not self._cache_size:
            return
        values = (*self.bijection.parameters(), *self.bijection.buffers())
        state = (torch.is_grad_enabled(), *((id(value), value._version) for value in values))
        if state != self._state:
            self._state, self._cached_x_y = state, (None, None)

    def __repr__(self) -> str:
        return f"Transform({self.bijection})"
