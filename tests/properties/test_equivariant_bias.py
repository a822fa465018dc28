"""An equivariant weight beside a bias: the layer is equivariant only if the bias is invariant, and stays so."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from tests.constructors import shifts
from torch import Tensor, nn

import p4torch as p4

#: Outputs of float32, of size about 1.
ROUNDING = 1e-6

GROUP = shifts(4, 4)
TRIVIAL = torch.ones(4, 1, 1)


def perturbed(layer: nn.Module, tensor_name: str = "weight", group: Any = GROUP) -> tuple[nn.Module, list[str]]:
    """The layer, and what was said of equivariance."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        p4.perturb(layer, tensor_name, p4.LinearSubspace, group=group)
    return layer, [str(warning.message) for warning in caught if warning.category is p4.PropertyWarning]


def off(layer: nn.Module) -> float:
    x = torch.randn(5, 4)
    return float((layer(x @ GROUP[1].T) - layer(x) @ GROUP[1].T).detach().abs().max())


def trained(layer: nn.Module) -> nn.Module:
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    p4.MergeScheduler(layer, optimizer, every=3).attach()
    for _ in range(20):
        optimizer.zero_grad()
        (layer(torch.randn(8, 4)) - torch.arange(4.0)).square().mean().backward()
        optimizer.step()
    return layer


def test_a_bias_that_trains_is_said_to_break_it_once_by_path() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    model, said = perturbed(model, "1.weight")
    (text,) = said
    assert text.startswith("`1.weight`: the layer is not equivariant") and "bias=False" in text and "'column'" in text
    assert off(model) > ROUNDING


@pytest.mark.parametrize("kind", ["circulant", "symmetric"])
def test_no_word_of_it_for_other_kinds(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", p4.ProjectionWarning)
        warnings.simplefilter("error", p4.PropertyWarning)
        p4.perturb(nn.Linear(4, 4), "weight", p4.LinearSubspace, kind=kind)


def test_without_a_bias_nothing_is_said() -> None:
    layer, said = perturbed(nn.Linear(4, 4, bias=False))
    assert not said and off(trained(layer)) <= ROUNDING


@pytest.mark.parametrize(
    ("values", "spoken"), [(torch.ones(4), False), (torch.zeros(4), False), (torch.eye(4)[0], True)]
)
def test_a_frozen_bias_is_looked_at(values: Tensor, spoken: bool) -> None:
    layer = nn.Linear(4, 4)
    layer.bias = nn.Parameter(values, requires_grad=False)
    layer, said = perturbed(layer)
    assert bool(said) is spoken is (off(layer) > ROUNDING)


def test_a_bias_among_the_invariant_vectors_keeps_the_layer_equivariant() -> None:
    layer = nn.Linear(4, 4)
    with pytest.warns(p4.ProjectionWarning, match="`bias` does not lie in"):
        p4.perturb(layer, "bias", p4.LinearSubspace, group=(GROUP, TRIVIAL), view="column")
    layer, said = perturbed(layer)
    start = layer.bias.detach().clone()
    assert not said and off(trained(layer)) <= ROUNDING
    assert bool((layer.bias != start).all())
    reference = copy.deepcopy(layer)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    reference.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(reference.bias, layer.bias)
    plain = p4.finalize(layer)
    assert type(plain) is nn.Linear and off(plain) <= ROUNDING


def test_a_bias_that_another_property_moves_is_said_to_break_it() -> None:
    layer = nn.Linear(4, 4)
    nn.init.ones_(layer.bias)
    p4.perturb(layer, "bias", p4.Nonnegative)
    assert perturbed(layer)[1]


def test_a_column_is_a_view_of_vectors() -> None:
    with pytest.raises(p4.ArgumentError, match=r"`view` must be none for \(4, 4\), `weight` of Linear, got 'column'"):
        p4.perturb(nn.Linear(4, 4), "weight", p4.LowRankUpdate, view="column")
