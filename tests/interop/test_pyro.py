"""Flows in models and guides of Pyro."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.flows.bijections import randomized
from torch import Tensor, nn

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.flows import AffineCoupling, Bijection, Chain, Flow, InvertibleLinear, StandardNormal, Swap, Transform

pyro = pytest.importorskip("pyro")
from pyro import distributions as dist  # noqa: E402
from pyro.infer import Trace_ELBO  # noqa: E402

from p4torch.interop.pyro import distribution, to_pyro  # noqa: E402

#: float64 rounding of a few layers.
ROUNDING = 1e-10
STEPS, EVERY = 60, 10


def bijection(context: int = 0) -> Chain:
    layers: list[Bijection] = [AffineCoupling(2, (16,), context=context), Swap(2), InvertibleLinear(2, context=context)]
    return Chain(layers)


def normal(dtype: torch.dtype = torch.float32) -> Any:
    return dist.Normal(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)).to_event(1)


def train(module: nn.Module, loss: Any) -> tuple[float, float, p4.MergeScheduler]:
    optimizer = torch.optim.Adam(p4.parameter_groups(module), lr=1e-2)
    schedule = p4.MergeScheduler(module, optimizer, every=EVERY)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(value.detach()))
    return losses[0], sum(losses[-10:]) / 10, schedule


def test_maximum_likelihood_of_a_transformed_distribution() -> None:
    torch.manual_seed(0)
    mapping, x = bijection(), torch.randn(200, 2) * 0.3 + 1
    law = dist.TransformedDistribution(normal(), [Transform(mapping, cache_size=1)])
    first, last, schedule = train(mapping, lambda: -law.log_prob(x).mean())
    assert last < first - 0.5 and schedule.merged == STEPS // EVERY
    assert law.sample((50,)).shape == (50, 2)


@pytest.mark.parametrize("context", [0, 3])
def test_registered_transforms(context: int) -> None:
    mapping = randomized(bijection(context).double(), 0.2)
    transform = to_pyro(mapping)
    assert dict(transform.named_parameters()).keys() == {f"bijection.{name}" for name, _ in mapping.named_parameters()}
    x = torch.randn(5, 2, dtype=torch.float64)
    c = torch.randn(5, 3, dtype=torch.float64) if context else None
    if context:
        law = dist.ConditionalTransformedDistribution(normal(torch.float64), [transform]).condition(c)
    else:
        law = dist.TransformedDistribution(normal(torch.float64), [transform])
    expected = Flow(mapping, StandardNormal(2)).log_prob(x, c)
    torch.testing.assert_close(law.log_prob(x), expected, rtol=0, atol=ROUNDING)
    drawn = law.rsample((3,))
    torch.testing.assert_close(drawn, transform_of(transform, c)(transform_of(transform, c).inv(drawn)))


def transform_of(transform: Any, context: Tensor | None) -> Any:
    return transform if context is None else transform.condition(context)


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store because requires_grad=False")
def test_a_flow_as_a_guide() -> None:
    """Variational inference of a correlated normal law: the bound gets tight."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    flow = Flow(bijection(), StandardNormal(2))
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])

    def model() -> None:
        pyro.sample("z", dist.MultivariateNormal(torch.ones(2), covariance))

    def guide() -> None:
        pyro.module("flow", flow)
        pyro.sample("z", distribution(flow))

    elbo = Trace_ELBO(num_particles=64, vectorize_particles=True)
    first, last, schedule = train(flow, lambda: elbo.differentiable_loss(model, guide))
    assert last < first - 0.5 and last < 0.2 and schedule.merged == STEPS // EVERY


def test_a_conditional_flow_as_a_likelihood() -> None:
    torch.manual_seed(0)
    flow, context = Flow(bijection(3), StandardNormal(2)), torch.randn(50, 3)
    x = context[:, :2] + 0.1 * torch.randn(50, 2)

    def model() -> None:
        with pyro.plate("data", 50):
            pyro.sample("x", distribution(flow, context), obs=x)

    elbo = Trace_ELBO()
    first, last, _ = train(flow, lambda: elbo.differentiable_loss(model, lambda: None) / 50)
    assert last < first - 0.5
    trace = pyro.poutine.trace(model).get_trace()
    expected = flow.log_prob(x, context).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_a_distribution_is_expanded_by_plates() -> None:
    flow = Flow(bijection(), StandardNormal(2))
    with pyro.plate("rows", 7):
        assert pyro.sample("x", distribution(flow)).shape == (7, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_pyro(nn.Linear(2, 2)), "`bijection` must be a Bijection, got Linear"),  # type: ignore[arg-type]
        (lambda: distribution(bijection()), "`flow` must be a Flow, got Chain"),  # type: ignore[arg-type]
        (lambda: distribution(Flow(bijection(3), StandardNormal(2))), "`context` must be given"),
        (lambda: to_pyro(bijection(3)).condition(torch.zeros(2)), r"`context` must be of shape \(\.\.\., 3\)"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
