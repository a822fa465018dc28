"""Bijections of p4torch in flows of nflows, transforms of nflows in ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.flows.bijections import randomized
from torch import nn

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.flows import AffineCoupling, Chain, Flow, InvertibleLinear, SplineCoupling, StandardNormal, Swap
from p4torch.testing import check_bijection

pytest.importorskip("nflows")
from nflows import distributions, flows, nn as nflows_nn, transforms

from p4torch.interop.nflows import from_nflows, to_nflows

#: float64 rounding of a few layers of two packages.
ROUNDING = 1e-8

#: float32 rounding of the same: nflows draws in float32.
SINGLE = 1e-4


def coupling(context: int | None) -> Any:
    def net(inputs: int, outputs: int) -> nn.Module:
        return nflows_nn.nets.ResidualNet(
            inputs, outputs, hidden_features=8, context_features=context, activation=nn.functional.silu
        )

    return transforms.AffineCouplingTransform(mask=[1, 0, 1, 0], transform_net_create_fn=net)


def mixed(context: int) -> Any:
    ours = [InvertibleLinear(4, rank=1), SplineCoupling(4, (0, 1), hidden=(8,), context=context), Swap(4)]
    parts = [to_nflows(ours[0]), coupling(context or None), to_nflows(ours[1]), to_nflows(ours[2])]
    torch.manual_seed(0)
    return flows.Flow(transforms.CompositeTransform(parts), distributions.StandardNormal([4]))


@pytest.mark.parametrize("context", [0, 2])
def test_a_mixed_flow_trains_and_merges(context: int) -> None:
    flow = mixed(context)
    optimizer = torch.optim.Adam(p4.parameter_groups(flow), lr=5e-3)
    schedule = p4.MergeScheduler(flow, optimizer, every=5)
    losses = []
    for _ in range(40):
        c = torch.randn(64, 2)
        x = torch.randn(64, 4) * 0.3 + c.sum(-1, keepdim=True)
        loss = -flow.log_prob(x, context=c if context else None).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    assert schedule.merged == 8 and losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("context", [0, 2])
def test_samples_of_a_mixed_flow(context: int) -> None:
    flow = randomized(mixed(context), 0.1)
    assert flow.sample(7, context=torch.randn(5, 2) if context else None).shape == ((5, 7, 4) if context else (7, 4))
    if context:
        c = torch.randn(5, 2)
        x, log_prob = flow.sample_and_log_prob(7, context=c)
        rows = flow.log_prob(x.flatten(0, 1), context=c.repeat_interleave(7, 0)).reshape(5, 7)
        torch.testing.assert_close(rows, log_prob, rtol=0, atol=SINGLE)


@pytest.mark.parametrize("context", [0, 2])
def test_round_trips_of_a_mixed_flow(context: int) -> None:
    transform = randomized(mixed(context).double(), 0.1)._transform
    x, c = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64) if context else None
    z, logabsdet = transform(x, c)
    back, opposite = transform.inverse(z, c)
    torch.testing.assert_close(back, x, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(logabsdet, -opposite, rtol=0, atol=ROUNDING)
    assert logabsdet.shape == (5,)


@pytest.mark.parametrize("context", [0, 3])
def test_a_transform_of_nflows_is_a_bijection(context: int) -> None:
    check_bijection(lambda: from_nflows(coupling(context or None), 4, context), 4, compile=False)


def test_a_chain_of_both() -> None:
    torch.manual_seed(0)
    parts = [InvertibleLinear(4, context=3), from_nflows(coupling(3), 4, 3), AffineCoupling(4, (8,))]
    flow = Flow(randomized(Chain(parts), 0.1), StandardNormal(4)).double()
    context = torch.randn(5, 1, 3, dtype=torch.float64)
    x, log_prob = flow.sample_with_log_prob(6, context)
    torch.testing.assert_close(flow.log_prob(x, context), log_prob, rtol=0, atol=ROUNDING)
    p4.merge(flow, force=True)
    torch.testing.assert_close(flow.log_prob(x, context), log_prob, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_nflows(nn.Linear(2, 2)), "`bijection` must be a Bijection, got Linear"),  # type: ignore[arg-type]
        (lambda: from_nflows(nn.Linear(2, 2), 2), "`transform` must be a Transform of nflows, got Linear"),
        (lambda: to_nflows(AffineCoupling(4, context=2))(torch.zeros(5, 4)), "`context` must be given"),
        (lambda: from_nflows(coupling(3), 4, 3)(torch.zeros(5, 4)), "`context` must be given"),
        (lambda: from_nflows(coupling(None), 4)(torch.zeros(5, 3)), "`x` must be of shape"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
