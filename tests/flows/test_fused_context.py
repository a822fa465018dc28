"""A fused run of couplings with a context, against its layers one by one and its reference."""

from __future__ import annotations

import pytest
import torch
from tests.flows.bijections import randomized
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.flows import AffineCoupling, Chain, InvertibleLinear, Swap
from p4torch.flows._fused.coupling import coupling_reference, with_context
from p4torch.flows._fused.run import fusable
from p4torch.flows.bijection import _planned

#: float64 rounding through up to six layers, relative to the largest entry.
TOLERANCE = 1e-11

#: float32 rounding through six layers against float64.
SINGLE = 1e-4


def chain(features: int, hidden: tuple[int, ...], kinds: str) -> Chain:
    """c: coupling with a context of 3, p: one without, s: swap, l: linear."""
    make = {
        "c": lambda: AffineCoupling(features, hidden, context=3),
        "p": lambda: AffineCoupling(features, hidden),
        "s": lambda: Swap(features),
        "l": lambda: InvertibleLinear(features, rank=1, init="orthogonal"),
    }
    return randomized(Chain([make[kind]() for kind in kinds]).double(), 0.3)


def one_by_one(layers: Chain, x: Tensor, context: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    total = x.new_zeros(())
    for layer in reversed(layers.bijections) if inverse else layers.bijections:
        given = (context,) if layer.context_features else ()
        x, logabsdet = layer.inverse(x, *given) if inverse else layer(x, *given)
        total = total + logabsdet
    return x, total


def close(left: Tensor, right: Tensor, tolerance: float = TOLERANCE) -> None:
    scale = 1 + float(right.detach().abs().max())
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("hidden", [(), (4,), (5, 4)])
@pytest.mark.parametrize(
    ("points", "contexts"), [((7,), (7,)), ((7,), ()), ((7,), (1,)), ((), (7,)), ((2, 7), (2, 1)), ((1,), (1,))]
)
def test_it_is_the_layers_one_by_one(
    points: tuple[int, ...], contexts: tuple[int, ...], hidden: tuple[int, ...], inverse: bool
) -> None:
    layers = chain(6, hidden, "clscp")
    x = torch.randn(*points, 6, dtype=torch.float64, requires_grad=True)
    context = torch.randn(*contexts, 3, dtype=torch.float64, requires_grad=True)
    fused = layers.inverse(x, context) if inverse else layers(x, context)
    assert "FusedRun" in _names(fused[0])
    plain = one_by_one(layers, x, context, inverse)
    inputs = [x, context, *(value for value in layers.parameters() if value.requires_grad)]
    directions = [torch.randn_like(value) for value in plain]
    for left, right in zip(fused, plain, strict=True):
        close(left, right)
    for _ in range(2):  # the graph is retained: the buffers still hold what they held
        got = torch.autograd.grad(fused, inputs, directions, retain_graph=True)
        for left, right in zip(got, torch.autograd.grad(plain, inputs, directions, retain_graph=True), strict=True):
            close(left, right)


def _names(value: Tensor) -> str:
    """Of the nodes of the graph behind a tensor, three steps deep."""
    nodes, names = [value.grad_fn], ""
    for _ in range(4):
        names += " ".join(type(node).__name__ for node in nodes)
        nodes = [following for node in nodes if node for following, _ in node.next_functions]
    return names


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("hidden", [(), (3,)])
def test_first_and_second_derivatives(hidden: tuple[int, ...], inverse: bool) -> None:
    layers = chain(4, hidden, "csl")
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    context = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    tensors = [value for value in layers.parameters() if value.requires_grad]

    def run(x: Tensor, context: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return layers.inverse(x, context) if inverse else layers(x, context)

    assert torch.autograd.gradcheck(run, (x, context, *tensors))
    assert torch.autograd.gradgradcheck(run, (x, context, *tensors))


def test_the_bias_of_each_point_is_what_the_context_adds() -> None:
    layer = randomized(AffineCoupling(4, (5,), context=3).double(), 0.3)
    x, context = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    step = layer.step()
    assert step is not None
    for got, expected in zip(
        coupling_reference(x, *with_context(context, 2, *step.tensors)), layer(x, context), strict=True
    ):
        close(got, expected)


def test_float32_against_float64() -> None:
    exact, single = chain(6, (8, 8), "cslcsl"), chain(6, (8, 8), "cslcsl").float()
    single.load_state_dict(exact.state_dict())
    x, context = torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    for layers, dtype in ((exact, torch.float64), (single, torch.float32)):
        z, total = layers(x.to(dtype), context.to(dtype))
        (z.square().sum() + total.sum()).backward()
    for left, right in zip(single.parameters(), exact.parameters(), strict=True):
        if right.grad is not None:
            assert left.grad is not None
            close(left.grad.double(), right.grad, SINGLE)


def test_what_is_not_fused() -> None:
    x, context = torch.randn(3, 4), torch.randn(3, 3)

    def fits(*layers: object, context: Tensor = context) -> bool:
        steps = [_planned(layer, context, False) for layer in layers]
        return all(step is not None for step in steps) and fusable(steps, x)  # type: ignore[arg-type]

    coupling = AffineCoupling(4, (3,), context=3)
    assert fits(coupling, Swap(4)) and fits(coupling, AffineCoupling(4, (3,)))
    assert not fits(coupling, context=context.double())
    assert not fits(coupling, context=context[:0])
    assert AffineCoupling(1, context=3).step() is None
    assert InvertibleLinear(4, rank=1, context=3).step() is None
    with pytest.raises(ArgumentError, match="broadcasts with that of the points"):
        Chain([coupling])(x, torch.zeros(2, 3))
    with pytest.raises(ArgumentError, match="of the dtype of the points"):
        Chain([coupling])(x, context.double())
