"""A flow, for one context or a batch of them, as a distribution of `torch.distributions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints

from p4torch._options import check_tensor
from p4torch.errors import ArgumentError

if TYPE_CHECKING:
    from p4torch.flows.flow import Flow


class FlowDistribution(torch.distributions.Distribution):
    """What `Flow.distribution(context)` returns: event shape (n,), batch shape that of the context.

    `log_prob`, `sample` and `rsample` are those of the flow, as it is when they are called. Its parameters are the
    flow's: give these to the optimizer.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        flow: Flow,
        context: Tensor | None,
        batch_shape: torch.Size,
        event_shape: torch.Size,
        validate_args: bool | None = None,
    ) -> None:
        self.flow, self.context = flow, context
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x|c), `(..., n)` -> `(...)`; the batch of x broadcasts with that of the context."""
        check_tensor("value", value)
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[: value.dim() - len(self.event_shape)], self.batch_shape)
        return self.flow.log_prob(value.expand(*batch, *self.event_shape), self.context)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """`(*sample_shape, *batch_shape, n)`, without a graph."""
        return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """`(*sample_shape, *batch_shape, n)`, differentiable with respect to the parameters and the context."""
        return self.flow._drawn(tuple(self._extended_shape(sample_shape))[: -len(self.event_shape)], self.context)[1]

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same distribution for a larger batch."""
        batch_shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*batch_shape, self.context.shape[-1])
        new: FlowDistribution = self._get_checked_instance(FlowDistribution, _instance)  # type: ignore[no-untyped-call]
        FlowDistribution.__init__(new, self.flow, context, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape: {self.batch_shape}, event_shape: {self.event_shape})"


def flow_distribution(
    flow: Flow, context: Tensor | None, features: int | None, validate_args: bool | None
) -> FlowDistribution:
    """The distribution of a flow for contexts; of vectors of `features`, None where it does not tell how many.

    Raises:
        ArgumentError: where it does not.
    """
    if features is None:
        raise ArgumentError.of("flow", "one whose bijection or base tells its number of `features`", "neither")
    batch = torch.Size() if context is None else context.shape[:-1]
    return FlowDistribution(flow, context, batch, torch.Size((features,)), validate_args)
