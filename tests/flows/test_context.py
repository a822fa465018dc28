"""Flows with a context: shapes of samples, densities that agree with them, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.flows.bijections import CONDITIONAL, randomized
from torch import Tensor

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.flows import (
    AffineCoupling,
    Bijection,
    Chain,
    Flow,
    InvertibleLinear,
    Partial,
    SplineCoupling,
    StandardNormal,
    Swap,
    VolumePreserving,
    for_inference,
    path_loss,
)
from p4torch.flows.path_gradient import path_loss_reference

#: float64 rounding of a handful of layers.
ROUNDING = 1e-10

#: float32 rounding of a handful of layers: what conditional densities promise.
SINGLE = 1e-5


def conditional(features: int = 4, context: int = 3) -> Chain:
    """One of each kind, and some that take no context."""
    return Chain(
        [
            InvertibleLinear(features, rank=1, context=context, context_rank=2),
            AffineCoupling(features, (8,), context=context),
            Swap(features),
            SplineCoupling(features, range(features // 2), hidden=(8,), context=context),
            InvertibleLinear(features, rank=1),
            Partial(features, (0,), AffineCoupling(1, (8,), context=context)),
        ]
    )


def flow_of(bijection: Bijection, features: int = 4, size: float = 0.2) -> Flow:
    torch.manual_seed(0)
    return randomized(Flow(bijection, StandardNormal(features)), size)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [((), (6,)), ((6,), (6,)), ((1,), (6,)), ((2, 1), (2, 6)), ((5, 2, 1), (5, 2, 6)), ((2, 6), (2, 6))],
)
def test_samples_have_the_batch_of_count_and_context(batch: tuple[int, ...], samples: tuple[int, ...]) -> None:
    flow, context = flow_of(conditional()).double(), torch.randn(*batch, 3, dtype=torch.float64)
    x, log_prob = flow.sample_with_log_prob(6, context, torch.Generator().manual_seed(1))
    assert x.shape == (*samples, 4) and log_prob.shape == samples
    torch.testing.assert_close(flow.log_prob(x, context), log_prob, rtol=0, atol=ROUNDING)
    again = flow.sample(6, context, torch.Generator().manual_seed(1))  # without gradients, by the layers one by one
    torch.testing.assert_close(again, x.detach(), rtol=0, atol=ROUNDING)
    assert torch.equal(flow.sample(6, context=context, generator=torch.Generator().manual_seed(1)), again)


def test_samples_of_several_contexts_are_independent() -> None:
    flow = flow_of(conditional(), size=0.0)
    x = flow.sample(5, torch.zeros(2, 1, 3))
    assert not torch.isclose(x[0], x[1]).any()


def test_a_row_depends_on_its_own_context() -> None:
    flow, context = flow_of(conditional()).double(), torch.randn(6, 3, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    rows = torch.stack([flow.log_prob(point, c) for point, c in zip(x, context, strict=True)])
    torch.testing.assert_close(flow.log_prob(x, context), rows, rtol=0, atol=ROUNDING)
    assert bool((flow.log_prob(x, context) != flow.log_prob(x, context.flip(0))).all())


@pytest.mark.parametrize("merged", [False, True])
def test_densities_and_samples_agree_in_single_precision(merged: bool) -> None:
    flow, context = flow_of(conditional(), size=0.1), torch.randn(100, 3)
    if merged:
        p4.merge(flow, force=True)
    x, log_prob = flow.sample_with_log_prob(100, context)
    torch.testing.assert_close(flow.log_prob(x, context), log_prob, rtol=SINGLE, atol=SINGLE)
    z, _ = flow.bijection(x, context)
    torch.testing.assert_close(flow.bijection.inverse(z, context)[0], x, rtol=SINGLE, atol=SINGLE)


def test_an_embedding_of_the_context_gets_a_gradient() -> None:
    flow, embedding = flow_of(conditional()), torch.nn.Linear(7, 3)
    (-flow.log_prob(torch.randn(5, 4), embedding(torch.randn(5, 7))).mean()).backward()
    flow.rsample(5, embedding(torch.randn(5, 7))).sum().backward()
    assert embedding.weight.grad is not None and bool(embedding.weight.grad.abs().gt(0).all())


def test_merging_and_finalizing_change_nothing() -> None:
    flow, context = flow_of(conditional()).double(), torch.randn(6, 3, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    before = flow.log_prob(x, context).detach()
    assert all(report.merged for report in p4.merge(flow, force=True))
    torch.testing.assert_close(flow.log_prob(x, context).detach(), before, rtol=0, atol=ROUNDING)
    for plain in (p4.finalize(copy.deepcopy(flow)), for_inference(flow)):
        torch.testing.assert_close(plain.log_prob(x, context).detach(), before, rtol=0, atol=ROUNDING)


def test_checkpoints() -> None:
    flow, other = flow_of(conditional()), flow_of(conditional(), size=0.5)
    x, context = torch.randn(6, 4), torch.randn(6, 3)
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other.log_prob(x, context), flow.log_prob(x, context))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Flow(conditional(context=2), StandardNormal(4)).load_state_dict(flow.state_dict())


def test_under_vmap() -> None:
    flow, context = flow_of(conditional()).double(), torch.randn(6, 3, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    got = torch.func.vmap(flow.log_prob)(x, context)
    torch.testing.assert_close(got, flow.log_prob(x, context), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("short", [False, True])
def test_autocast_changes_nothing(short: bool) -> None:
    flow, x, context = flow_of(conditional()), torch.randn(6, 4), torch.randn(6, 3)
    if short:
        x, context = x.bfloat16().float(), context.bfloat16().float()
    expected = flow.log_prob(x, context)
    with torch.autocast("cpu", torch.bfloat16):
        got = flow.log_prob(*((x.bfloat16(), context.bfloat16()) if short else (x, context)))
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_a_new_layer_depends_on_no_context_yet_but_trains() -> None:
    layer = InvertibleLinear(4, context=3, context_rank=2)
    x, context = torch.randn(6, 4), torch.randn(6, 3)
    z, logabsdet = layer(x, context)
    torch.testing.assert_close(z, x)
    assert not logabsdet.any()
    (z.square().sum() + logabsdet.sum()).backward()
    u_and_shift = layer.conditioner.last.weight.grad[: 4 + 8]  # type: ignore[union-attr, index]
    assert bool(u_and_shift.any(-1).all())


def test_no_context_makes_a_linear_layer_singular() -> None:
    """Whatever the sign of its determinant is, it is the same for all contexts."""
    torch.manual_seed(0)
    layer = randomized(InvertibleLinear(3, rank=1, context=2, context_rank=2).double(), 0.2)
    context = torch.randn(500, 1, 2, dtype=torch.float64)
    zero, basis = torch.zeros(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    weights = (layer(basis, context)[0] - layer(zero, context)[0]).mT
    sign, logabsdet = torch.linalg.slogdet(weights)
    assert bool((sign == sign[0]).all())
    torch.testing.assert_close(layer(zero, context)[1].squeeze(-1), logabsdet, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_path_gradients(name: str) -> None:
    build, features = CONDITIONAL[name]
    flow = flow_of(Chain([build(), InvertibleLinear(features), build()]), features, size=0.1).double()
    # near 0, since the reference inverts the whole chain, whose linear layer does not know angles
    x, score = (torch.randn(2, 7, features, dtype=torch.float64) / 2).unbind(0)
    context = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    fast, reference = path_loss(flow, x, score, context=context), path_loss_reference(flow, x, score, context=context)
    torch.testing.assert_close(fast, -flow.log_prob(x, context).mean(), rtol=0, atol=ROUNDING)
    inputs = [context, *(value for value in flow.parameters() if value.requires_grad)]
    left, right = (torch.autograd.grad(loss, inputs, allow_unused=True) for loss in (fast, reference))
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-8)  # linear layers are undone by a tracked inverse


def test_path_gradients_of_one_context_for_all_points() -> None:
    flow = flow_of(conditional()).double()
    x, score = torch.randn(2, 7, 4, dtype=torch.float64).unbind(0)
    context = torch.randn(3, dtype=torch.float64)
    same = path_loss(flow, x, score, context=context.expand(7, 3))
    torch.testing.assert_close(path_loss(flow, x, score, context=context), same, rtol=0, atol=ROUNDING)
    with pytest.raises(ArgumentError, match="`context` must be of one batch with the points"):
        path_loss(flow, x[:1], score[:1], context=context.expand(7, 3))


FLOW, PLAIN = Flow(conditional(), StandardNormal(4)), Flow(Chain([Swap(4)]), StandardNormal(4))
X, CONTEXT = torch.zeros(6, 4), torch.zeros(6, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FLOW.log_prob(X), "`context` must be given, of shape"),
        (lambda: FLOW.sample(6), "`context` must be given, of shape"),
        (lambda: FLOW.bijection(X), "`context` must be given"),
        (lambda: AffineCoupling(4, context=3)(X), "since this AffineCoupling is conditional"),
        (lambda: path_loss(FLOW, X, X), "`context` must be given"),
        (lambda: PLAIN.log_prob(X, CONTEXT), "`context` must be left out, since nothing in this Flow takes one"),
        (lambda: PLAIN.sample(6, CONTEXT), "`context` must be left out"),
        (lambda: Swap(4)(X, CONTEXT), "`context` must be left out, since nothing in this Swap"),
        (lambda: FLOW.log_prob(X, CONTEXT[:, :2]), r"`context` must be of shape \(\.\.\., 3\), got \(6, 2\)"),
        (lambda: FLOW.log_prob(X, CONTEXT[:5]), r"broadcasts with that of the points, \(6,\), got shape \(5, 3\)"),
        (lambda: FLOW.log_prob(X, CONTEXT.double()), "`context` must be of the dtype of the points"),
        (lambda: FLOW.log_prob(X, [0.0, 0.0, 0.0]), "`context` must be a tensor"),  # type: ignore[arg-type]
        (lambda: FLOW.log_prob(X, torch.zeros(())), "`context` must be of shape"),
        (lambda: FLOW.sample(5, CONTEXT), r"`count` of samples \(`context.unsqueeze\(-2\)`"),
        (lambda: FLOW.sample(0, CONTEXT), "`count` must be"),
        (lambda: Chain([AffineCoupling(4, context=2), AffineCoupling(4, context=3)]), "contexts of one size"),
        (lambda: AffineCoupling(4, context=-1), "`context` must be an integer >= 0"),
        (lambda: InvertibleLinear(4, context_rank=2), "`context_rank` must be 0 where there is no `context`"),
        (lambda: InvertibleLinear(4, bias=False, context=2), "`context_rank` must be an integer >= 1 without a bias"),
        (lambda: InvertibleLinear(4, context=2, context_hidden=(0,)), "`context_hidden` must be"),
        (lambda: InvertibleLinear(2, dtype=torch.complex64, property=p4.Unitary, context=2), "0 for a complex layer"),
        (lambda: VolumePreserving(Chain([InvertibleLinear(4, context=2)])), "no `context` acts on the last layer"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


def test_a_volume_preserving_flow() -> None:
    flow = randomized(
        VolumePreserving(Chain([InvertibleLinear(4, rank=1, context=3), InvertibleLinear(4, rank=1)])), 0.3
    ).double()
    x, context = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    z, logabsdet = flow(x, context)
    torch.testing.assert_close(logabsdet, torch.zeros_like(logabsdet), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(flow.inverse(z, context)[0], x, rtol=0, atol=ROUNDING)


def test_a_bijection_of_ones_own() -> None:
    class Shift(Bijection):
        context_features = 4

        def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            assert context is not None
            return x + context, x.new_zeros(())

        def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            assert context is not None
            return z - context, z.new_zeros(())

    flow = Flow(Chain([Shift(), Swap(4)]), StandardNormal(4))
    x, context = torch.randn(6, 4), torch.randn(6, 4)
    torch.testing.assert_close(flow.log_prob(x, context), StandardNormal(4).log_prob(x + context))
    with pytest.raises(ArgumentError, match="`context` must be given"):
        Shift()(x)
