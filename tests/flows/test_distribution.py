"""Flows as distributions of torch, and bijections as its transforms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.flows.bijections import randomized
from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution, constraints

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.flows import (
    AffineCoupling,
    BentIdentity,
    Bijection,
    Chain,
    Flow,
    InvertibleLinear,
    StandardNormal,
    Swap,
    Transform,
)

#: float64 rounding of a few layers.
ROUNDING = 1e-10


def bijection(context: int = 0) -> Bijection:
    layers = [
        InvertibleLinear(4, rank=1, context=context, context_rank=min(context, 1)),
        AffineCoupling(4, (8,), context=context),
        Swap(4),
    ]
    torch.manual_seed(0)
    return randomized(Chain(layers).double(), 0.2)


def normal() -> Independent:
    return Independent(Normal(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)), 1)


@pytest.mark.parametrize("validate", [False, True, None])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_a_conditional_distribution(batch: tuple[int, ...], validate: bool | None) -> None:
    flow, context = Flow(bijection(2), StandardNormal(4)).double(), torch.randn(*batch, 2, dtype=torch.float64)
    law = flow.distribution(context, validate_args=validate)
    assert law.batch_shape == batch and law.event_shape == (4,)
    assert law.sample().shape == (*batch, 4)
    x = law.rsample((5, 2))
    assert x.shape == (5, 2, *batch, 4) and x.requires_grad and not law.sample((5, 2)).requires_grad
    assert torch.equal(law.log_prob(x), flow.log_prob(x, context)) and law.log_prob(x).shape == (5, 2, *batch)
    assert law.log_prob(torch.zeros(4, dtype=torch.float64)).shape == batch
    assert bool(law.support.check(x).all())


def test_one_without_a_context_and_a_larger_batch() -> None:
    flow = Flow(bijection(), StandardNormal(4)).double()
    law = flow.distribution()
    assert law.batch_shape == () and law.sample((3,)).shape == (3, 4)
    wide = law.expand((3,))
    assert wide.batch_shape == (3,) and wide.sample((2,)).shape == (2, 3, 4)
    x = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(wide.log_prob(x), law.log_prob(x).expand(3), rtol=0, atol=ROUNDING)
    conditional = Flow(bijection(2), StandardNormal(4)).double()
    expanded = conditional.distribution(torch.randn(1, 2, dtype=torch.float64)).expand((5, 3))
    assert expanded.sample((2,)).shape == (2, 5, 3, 4)
    assert not torch.equal(*expanded.sample()[:2, 0])


def test_validation_finds_points_of_other_shapes_and_no_numbers() -> None:
    law = Flow(bijection(), StandardNormal(4)).double().distribution(validate_args=True)
    for bad in (torch.zeros(3), torch.full((4,), torch.nan, dtype=torch.float64)):
        with pytest.raises(ValueError):
            law.log_prob(bad)
    with pytest.raises(ArgumentError, match="`value` must be a tensor"):
        law.log_prob([0.0] * 4)  # type: ignore[arg-type]


def test_the_number_of_features_is_that_of_the_bijection_or_of_the_base() -> None:
    base = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
    assert Flow(BentIdentity(), base).distribution().sample((2,)).shape == (2, 3)
    assert Flow(BentIdentity(), StandardNormal(3)).distribution().event_shape == (3,)

    class Own:
        def log_prob(self, z: Tensor) -> Tensor:
            return -z.square().sum(-1)

        def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
            return torch.zeros(count, 3)

    with pytest.raises(ArgumentError, match="`flow` must be one whose bijection or base"):
        Flow(BentIdentity(), Own()).distribution()


def test_it_follows_training_and_merges() -> None:
    flow = Flow(bijection(), StandardNormal(4)).double()
    law, x = flow.distribution(), torch.randn(5, 4, dtype=torch.float64)
    before = law.log_prob(x)
    p4.merge(flow, force=True)
    torch.testing.assert_close(law.log_prob(x), before, rtol=0, atol=ROUNDING)
    randomized(flow, 0.1)
    assert not torch.isclose(law.log_prob(x), before).any()


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("context", [0, 2])
def test_a_transformed_distribution_is_the_flow(context: int, validate: bool, cache_size: int) -> None:
    mapping = bijection(context)
    given = torch.randn(3, 2, dtype=torch.float64) if context else None
    law = TransformedDistribution(normal(), [Transform(mapping, given, cache_size)], validate_args=validate)
    flow = Flow(mapping, normal())
    assert law.batch_shape == ((3,) if context else ()) and law.event_shape == (4,)
    x = law.rsample((5,))
    torch.testing.assert_close(law.log_prob(x), flow.log_prob(x, given), rtol=0, atol=ROUNDING)
    y = torch.randn(7, *law.batch_shape, 4, dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(y), flow.log_prob(y, given), rtol=0, atol=ROUNDING)
    if context:
        assert not torch.equal(*law.sample()[:2])  # the base has a draw for each row


def test_directions() -> None:
    mapping = bijection()
    transform, z = Transform(mapping), torch.randn(5, 4, dtype=torch.float64)
    x = transform(z)
    assert torch.equal(x, mapping.inverse(z)[0])
    torch.testing.assert_close(transform.inv(x), z, rtol=0, atol=ROUNDING)
    expected = mapping.inverse(z)[1]
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, x), expected, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(transform.log_abs_det_jacobian(z + 0, x), expected, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(x, z), -expected, rtol=0, atol=ROUNDING)
    assert transform.event_dim == 1 and transform.bijective and transform.inv.inv is transform
    assert transform.domain is transform.codomain is constraints.real_vector
    assert "Chain" in repr(transform)


def test_a_constant_log_determinant_has_the_shape_of_the_batch() -> None:
    transform, z = Transform(Swap(4)), torch.randn(5, 2, 4)
    assert transform.log_abs_det_jacobian(z, transform(z)).shape == (5, 2)


class _Counting(Bijection):
    """Counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = randomized(AffineCoupling(4, (8,)).double(), 0.2), 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.inner(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.inner.inverse(z)


def test_a_density_takes_one_pass_and_a_cached_pair_none() -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    for cache_size in (0, 1):
        counting = _Counting()
        law = TransformedDistribution(normal(), [Transform(counting, cache_size=cache_size)])
        law.log_prob(x)
        assert counting.calls == 1
        law.log_prob(law.rsample((3,)))
        assert counting.calls == (3 if cache_size == 0 else 2)


def test_a_cache_forgets_when_parameters_move() -> None:
    mapping = bijection()
    law = TransformedDistribution(normal(), [Transform(mapping, cache_size=1)])
    optimizer, x = torch.optim.SGD(mapping.parameters(), 0.1), torch.randn(5, 4, dtype=torch.float64)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = -law.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > losses[1] > losses[2]
    with torch.no_grad():
        quiet = law.log_prob(x)
    assert not quiet.requires_grad and law.log_prob(x).requires_grad
    p4.merge(mapping, force=True)
    torch.testing.assert_close(law.log_prob(x).detach(), quiet, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("cache_size", [0, 1])
def test_copies(cache_size: int) -> None:
    law = TransformedDistribution(normal(), [Transform(bijection(), cache_size=cache_size)])
    x = law.rsample((3,))
    other = copy.deepcopy(law)
    torch.testing.assert_close(other.log_prob(x), law.log_prob(x), rtol=0, atol=ROUNDING)
    transform = law.transforms[0]
    assert transform.with_cache(cache_size) is transform and transform.with_cache(1 - cache_size) is not transform


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Transform(torch.nn.Linear(2, 2)), "`bijection` must be a Bijection, got Linear"),  # type: ignore[arg-type]
        (lambda: Transform(bijection(2)), "`context` must be given"),
        (lambda: Transform(bijection(), torch.zeros(3, 2)), "`context` must be left out"),
        (lambda: Transform(bijection(2), torch.zeros(3, 5)), r"`context` must be of shape \(\.\.\., 2\)"),
        (lambda: Flow(bijection(2), StandardNormal(4)).distribution(), "`context` must be given"),
        (lambda: Flow(bijection(), StandardNormal(4)).distribution(torch.zeros(2)), "`context` must be left out"),
        (lambda: Flow(bijection(), normal().expand((3,))), "`base` must be one distribution of vectors"),
        (lambda: Flow(bijection(), Normal(0.0, 1.0)), "`base` must be one distribution of vectors"),
        (lambda: Flow(bijection(), StandardNormal(3)), "`base` must be of 4 features, as the bijection"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
