"""`nn.Linear` on the factored path."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import p4torch as p4
from p4torch.parametrize.linear import FactoredLinear


def layer_of(bias: bool = True, **options: object) -> nn.Linear:
    layer = nn.Linear(5, 5, bias=bias, dtype=torch.float64)
    p4.perturb(layer, "weight", p4.Invertible, **{"rank": 1} | options)
    (site,) = p4.sites(layer)
    with torch.no_grad():
        for value in site.perturbation.parameters(recurse=False):
            value.add_(0.1 * torch.randn_like(value))
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["additive", "exponential"])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_equals_the_dense_path(bias: bool, form: str, shape: tuple[int, ...]) -> None:
    layer = layer_of(bias, form=form, rank=2)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    factored = layer(x)
    dense = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(factored, dense)
    trained = [value for value in layer.parameters() if value.requires_grad]
    for one, other in zip(
        torch.autograd.grad(factored.square().sum(), [x, *trained]),
        torch.autograd.grad(dense.square().sum(), [x, *trained]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_base_gets_no_gradient_and_the_weight_is_never_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of()
    monkeypatch.setattr(p4.Invertible, "forward", lambda self, base: pytest.fail("formed the dense weight"))
    layer(torch.randn(3, 5, dtype=torch.float64)).sum().backward()
    (site,) = p4.sites(layer)
    assert site.base.grad is None and not site.base.requires_grad
    assert {name for name, value in layer.named_parameters() if value.grad is not None} == {
        "bias",
        "parametrizations.weight.0.u",
        "parametrizations.weight.0.v",
    }


def test_the_class_is_swapped_and_swapped_back() -> None:
    layer = layer_of()
    assert isinstance(layer, FactoredLinear) and isinstance(layer, nn.Linear)
    assert p4.finalize(layer) is layer
    assert type(layer) is nn.Linear


def test_subclasses_keep_their_own_forward() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    layer = Doubled(3, 3)
    x = torch.randn(2, 3)
    before = layer(x)
    p4.perturb(layer, "weight", p4.Invertible)
    torch.testing.assert_close(layer(x), before)
    assert isinstance(layer, Doubled)
    assert type(p4.finalize(layer)) is Doubled


def test_a_failed_perturb_leaves_the_class() -> None:
    layer = nn.Linear(3, 4)
    with pytest.raises(p4.ArgumentError):
        p4.perturb(layer, "weight", p4.Invertible)
    assert type(layer) is nn.Linear and not parametrize.is_parametrized(layer)


def test_cached_weights() -> None:
    layer = layer_of()
    with parametrize.cached():
        assert layer.weight is layer.weight
        y = layer(torch.ones(1, 5, dtype=torch.float64))
    torch.testing.assert_close(y, layer(torch.ones(1, 5, dtype=torch.float64)))


def test_deepcopy_of_the_swapped_class() -> None:
    layer = layer_of()
    reference = copy.deepcopy(layer)
    x = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(reference(x), layer(x))
    assert type(p4.finalize(reference)) is nn.Linear
    assert isinstance(layer, FactoredLinear)


@pytest.mark.parametrize("form", ["additive", "exponential"])
def test_autocast_gives_the_dtype_of_a_plain_layer(form: str) -> None:
    layer, plain = layer_of(form=form, rank=2).float(), nn.Linear(5, 5)
    x = torch.randn(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == plain(x).dtype == torch.bfloat16


def test_compiles_without_a_graph_break() -> None:
    layer = layer_of(rank=2)
    x = torch.randn(4, 5, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    p4.merge(layer)
    torch.testing.assert_close(compiled(x), layer(x))
