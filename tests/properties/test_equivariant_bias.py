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
from p4torch.representations import Representation, su2

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


#: Of the same group: all its matrices, one of which it is made, and that as a representation.
GIVEN: dict[str, dict[str, Any]] = {
    "group": {"group": GROUP},
    "generators": {"generators": GROUP[1:2]},
    "representation": {"representation": Representation(GROUP[1:2])},
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_bias_that_trains_is_kept_invariant(name: str) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    with pytest.warns(p4.ProjectionWarning, match="`1.bias` does not lie in"):
        p4.perturb(model, "1.weight", p4.LinearSubspace, **GIVEN[name])
    assert [site.name for site in p4.sites(model)] == ["1.weight", "1.bias"]
    start = model[1].bias.detach().clone()
    assert off(model) <= ROUNDING and off(trained(model)) <= ROUNDING
    assert bool((model[1].bias != start).all())


def test_a_tied_bias_stays_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = model[0].bias
    for index in range(2):
        p4.perturb(model, f"{index}.weight", p4.LinearSubspace, representation=Representation(GROUP[1:2]))
    assert len(list(p4.sites(model))) == 3 and off(trained(model)) <= ROUNDING
    assert torch.equal(model[0].bias, model[1].bias)


@pytest.mark.parametrize(
    "options",
    [
        {"group": torch.stack([torch.eye(4), -torch.eye(4)])},
        {"generators": -torch.eye(4).unsqueeze(0)},
        {"algebra": su2(0.5).algebra},
    ],
)
def test_a_bias_is_refused_where_none_is_invariant(options: dict[str, Any]) -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(p4.ArgumentError, match="`module` must be made with bias=False: no bias but 0 is invariant"):
        p4.perturb(layer, "weight", p4.LinearSubspace, **options)
    assert type(layer) is nn.Linear and layer.weight.requires_grad
    layer = nn.Linear(4, 4, bias=False)
    p4.perturb(layer, "weight", p4.LinearSubspace, **options)


def test_a_layer_on_meta_gets_both() -> None:
    layer = nn.Linear(4, 4, device="meta")
    p4.perturb(layer, "weight", p4.LinearSubspace, representation=Representation(GROUP[1:2]))
    plain = nn.Linear(4, 4)
    with torch.no_grad():
        plain.weight.copy_(torch.eye(4))
        plain.bias.fill_(0.5)
    same = p4.perturb(plain, "weight", p4.LinearSubspace, representation=Representation(GROUP[1:2]))
    layer.to_empty(device="cpu").load_state_dict(same.state_dict())
    assert torch.equal(layer(torch.ones(4)), same(torch.ones(4)))


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
