"""Pyro: bijections of p4torch as transforms that Pyro's modules register, flows as distributions that it samples.

`p4torch.flows.Transform` serves in `pyro.distributions.TransformedDistribution` as it is. Directions are those of Pyro,
from latent to data.

`pyro.optim` makes an optimizer for each parameter, which no merge schedule can follow. Give all parameters to one of
torch's instead, with `elbo.differentiable_loss(model, guide).backward()`, and merge by a `MergeScheduler`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import constraints

from p4torch.errors import ArgumentError
from p4torch.flows import Bijection, Flow, FlowDistribution, Transform
from p4torch.flows.bijection import check_is_bijection
from p4torch.interop._packages import needs

with needs("pyro"):
    from pyro.distributions.conditional import ConditionalTransformModule
    from pyro.distributions.torch_distribution import TorchDistributionMixin
    from pyro.distributions.torch_transform import TransformModule


class BijectionTransform(TransformModule):  # type: ignore[misc]
    """A bijection as a transform z -> x that is a module, too."""

    bijective = True
    domain = codomain = constraints.real_vector

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection, self._transform = bijection, Transform(bijection)

    def _call(self, x: Tensor) -> Tensor:
        return self._transform(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._transform.inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det ∂y/∂x| `(...)`."""
        return self._transform.log_abs_det_jacobian(x, y)


class ConditionalBijectionTransform(ConditionalTransformModule):  # type: ignore[misc]
    """A conditional bijection as one of Pyro's conditional transforms."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def condition(self, context: Tensor) -> Transform:
        """The transform z -> x of a context `(..., c)`."""
        return Transform(self.bijection, context)


class PyroFlowDistribution(FlowDistribution, TorchDistributionMixin):  # type: ignore[misc]
    """A flow's distribution as one of Pyro's."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return super().expand(batch_shape, self._get_checked_instance(PyroFlowDistribution, _instance))  # type: ignore[no-untyped-call]


def to_pyro(bijection: Bijection) -> TransformModule | ConditionalTransformModule:
    """A bijection as a transform z -> x whose parameters Pyro's modules register; one that is conditional as a
    conditional transform, for `ConditionalTransformedDistribution`.

    Raises:
        ArgumentError: no bijection.
    """
    check_is_bijection(bijection)
    return ConditionalBijectionTransform(bijection) if bijection.context_features else BijectionTransform(bijection)


def distribution(flow: Flow, context: Tensor | None = None) -> PyroFlowDistribution:
    """`flow.distribution(context)` for `pyro.sample`.

    Raises:
        ArgumentError: no flow; a context that is missing, superfluous or of another size.
    """
    if not isinstance(flow, Flow):
        raise ArgumentError.of("flow", "a Flow", type(flow).__name__)
    plain = flow.distribution(context)
    return PyroFlowDistribution(flow, context, plain.batch_shape, plain.event_shape, plain._validate_args)
