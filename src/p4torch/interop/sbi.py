"""sbi: posteriors, or likelihoods, by flows of p4torch, trained by sbi's own loop.

NPE(prior, density_estimator=density_estimator())
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError
from p4torch.flows import Bijection, Chain, Flow, InvertibleLinear, SplineCoupling, StandardNormal
from p4torch.interop._packages import needs
from p4torch.parametrize.sites import sites
from p4torch.training.lazy import LazyMergeScheduler

with needs("sbi"):
    from sbi.neural_nets.estimators.base import ConditionalDensityEstimator

#: Features that do not vary are not divided by less than this.
_LEAST = 1e-7


class FlowEstimator(ConditionalDensityEstimator):  # type: ignore[misc]
    """A conditional `Flow` as sbi's estimator of p(input | condition).

    Inputs and conditions are standardised, each feature by its mean and deviation in the batch that it was built with:

        log p(θ|x) = log q((θ - μ)/σ | e((x - μ')/σ')) - Σ log σ

    Args:
        flow: q, of flattened inputs, given flattened embeddings.
        inputs: `(batch, *input_shape)`, of which means and deviations are taken.
        conditions: `(batch, *condition_shape)`.
        embedding_net: e, of standardised conditions; trained with the flow.
        standardize: whether means and deviations are used.
    """

    def __init__(
        self, flow: Flow, inputs: Tensor, conditions: Tensor, embedding_net: nn.Module, standardize: bool = True
    ) -> None:
        super().__init__(flow, input_shape=inputs.shape[1:], condition_shape=conditions.shape[1:])
        self._embedding_net = embedding_net
        for name, batch in (("input", inputs), ("condition", conditions)):
            mean, deviation = batch.mean(0), batch.std(0).clamp_min(_LEAST)
            self.register_buffer(f"{name}_mean", mean if standardize else torch.zeros_like(mean))
            self.register_buffer(f"{name}_deviation", deviation if standardize else torch.ones_like(deviation))

    @property
    def embedding_net(self) -> nn.Module:
        """That of the conditions."""
        return self._embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
        """`(sample, batch)` for inputs `([sample,] batch, *input_shape)` and conditions `([sample,] batch,
        *condition_shape)`; batches broadcast."""
        self._check_input_shape(input)
        if input.dim() <= len(self.input_shape) + 1:
            input = input.unsqueeze(0)
        points = ((input - self.input_mean) / self.input_deviation).flatten(input.dim() - len(self.input_shape))
        return self.net.log_prob(points, self._context(condition)) - self.input_deviation.log().sum()

    def loss(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
        """-log p `(batch,)`."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape: torch.Size, condition: Tensor, **_: Any) -> Tensor:
        """`(*sample_shape, batch, *input_shape)`."""
        return self._inputs(self.net.distribution(self._context(condition)).sample(sample_shape))

    def sample_and_log_prob(self, sample_shape: torch.Size, condition: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        """Samples and their log p `(*sample_shape, batch)`, in one pass."""
        context = self._context(condition)
        count = torch.Size(sample_shape).numel()
        points, log_prob = self.net.sample_with_log_prob(count, context.unsqueeze(-2))  # (batch, count, n)
        batch = torch.Size((*sample_shape, len(context)))
        samples = self._inputs(points.transpose(0, 1).reshape(*batch, points.shape[-1]))
        return samples, log_prob.mT.reshape(batch) - self.input_deviation.log().sum()

    def _context(self, condition: Tensor) -> Tensor:
        self._check_condition_shape(condition)
        axes = len(self.condition_shape)
        standardised = (condition - self.condition_mean) / self.condition_deviation
        batch = condition.shape[: condition.dim() - axes]
        return self._embedding_net(standardised.reshape(-1, *self.condition_shape)).reshape(*batch, -1)

    def _inputs(self, points: Tensor) -> Tensor:
        return points.unflatten(-1, self.input_shape) * self.input_deviation + self.input_mean


def spline_flow(
    features: int, context: int, depth: int = 5, hidden: tuple[int, ...] = (64, 64), bins: int = 10
) -> Flow:
    """Rational-quadratic splines of every other feature in turn, given all others and the context, with a P4 linear
    layer after each."""
    layers: list[Bijection] = []
    for index in range(depth):
        moved = range(index % 2 if features > 1 else 0, features, 2)
        layers.append(SplineCoupling(features, moved, hidden=hidden, bins=bins, context=context))
        if features > 1:
            layers.append(InvertibleLinear(features))
    return Flow(Chain(layers), StandardNormal(features))


def density_estimator(
    build: Callable[[int, int], Flow] = spline_flow,
    *,
    embedding_net: nn.Module | None = None,
    standardize: bool = True,
    every: int | None = 50,
    **options: Any,
) -> Callable[[Tensor, Tensor], FlowEstimator]:
    """What `NPE(density_estimator=...)` and `NLE` of sbi take: a function that makes an estimator for their data.

    It merges while sbi trains it, every `every` steps of sbi's optimizer, by a `LazyMergeScheduler`. sbi's loop stays
    as it is.

    Args:
        build: makes the flow, from the numbers of features of inputs and of context.
        embedding_net: of conditions, to a context `(batch, c)`; trained along. None: conditions as they are, flattened.
        standardize: inputs and conditions, by the training data.
        every, options: of `MergeScheduler`.

    Raises:
        ArgumentError: when sbi calls it, for what `build` makes: no flow, or one of other features.
    """

    def builder(batch_theta: Tensor, batch_x: Tensor) -> FlowEstimator:
        embedding = nn.Flatten() if embedding_net is None else embedding_net
        with torch.no_grad():
            context = embedding(batch_x[:1]).flatten(1).shape[1]
        flow = build(batch_theta[0].numel(), context)
        if not isinstance(flow, Flow) or flow.context_features != context:
            got = type(flow).__name__ if not isinstance(flow, Flow) else f"one of {flow.context_features}"
            raise ArgumentError.of("build", f"a function that returns a Flow of {context} context features", got)
        estimator = FlowEstimator(flow, batch_theta, batch_x, embedding, standardize)
        if next(iter(sites(estimator)), None) is not None:
            LazyMergeScheduler(estimator, every, **options)
        return estimator

    return builder
