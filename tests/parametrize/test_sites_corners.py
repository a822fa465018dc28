"""Corners of sites: wrapped models, other parametrizations, aliases, tensors that are almost singular, checkpoints."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from tests.layers import b_of, layer_of
from torch import Tensor, nn
from torch.nn.utils import parametrize

import p4torch as p4


@torch.no_grad()
def move(module: nn.Module) -> None:
    b_of(module).u.add_(0.3)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrappers_change_neither_sites_nor_names(wrap: Any) -> None:
    model = nn.Sequential(layer_of(), nn.Tanh(), layer_of())
    names = [site.name for site in p4.sites(model)]
    assert [site.name for site in p4.sites(wrap(model))] == names == ["0.weight", "2.weight"]
    single = wrap(model[0])
    assert [site.name for site in p4.sites(single)] == ["weight"]
    p4.finalize(single)
    assert type(model[0]) is nn.Linear


def test_names_do_not_depend_on_a_compiled_part() -> None:
    model = nn.Sequential(layer_of(), torch.compile(layer_of()))
    assert [site.name for site in p4.sites(model)] == ["0.weight", "1.weight"]


def test_assignment_does_not_alias() -> None:
    layer, whole = layer_of(), torch.eye(5)
    layer.weight = whole[:3, :3]
    move(layer)
    assert p4.merge(layer)[0].ok
    assert torch.equal(whole, torch.eye(5))


def test_expanded_stack_becomes_a_stack_of_its_own() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.eye(3).expand(4, 3, 3))
    p4.perturb(module, "weight", p4.Invertible, rank=1)
    with torch.no_grad():
        b_of(module).u[1] = 0.3
    assert p4.merge(module)[0].merged == 4
    assert torch.equal(module.weight[0].detach(), torch.eye(3))


class _Double(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return 2 * tensor


@pytest.mark.parametrize("first", [True, False])
def test_a_parametrized_bias_beside_a_perturbed_weight(first: bool) -> None:
    layer, x = nn.Linear(3, 3), torch.randn(4, 3)
    nn.init.orthogonal_(layer.weight)
    if first:
        parametrize.register_parametrization(layer, "bias", _Double())
    p4.perturb(layer, "weight", p4.Invertible)
    if not first:
        parametrize.register_parametrization(layer, "bias", _Double())
    expected = x @ layer.weight.mT + layer.bias
    torch.testing.assert_close(layer(x), expected)
    p4.finalize(layer)
    torch.testing.assert_close(layer(x), expected)


def test_a_second_parametrization_counts() -> None:
    layer, x = layer_of(), torch.randn(4, 3)
    parametrize.register_parametrization(layer, "weight", _Double())
    torch.testing.assert_close(layer(x), x @ layer.weight.mT + layer.bias)


def _rank_deficient(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((8, 7), (7, 8)))
    return left @ right


@pytest.mark.parametrize(
    "matrix", [_rank_deficient(torch.float32), _rank_deficient(torch.float64), 1e-39 * torch.eye(3)]
)
def test_singular_to_working_precision_is_refused(matrix: Tensor) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(matrix)
    with pytest.raises(p4.ArgumentError, match="`base` must be nonsingular"):
        p4.perturb(module, "weight", p4.Invertible)


@pytest.mark.parametrize("property", [p4.Invertible(torch.eye(3)), "invertible", lambda base: nn.Identity()])
def test_what_is_no_property_is_refused(property: Any) -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(p4.ArgumentError, match="`property` must be"):
        p4.perturb(layer, "weight", property)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("call", [p4.merge, lambda model: list(p4.sites(model)), p4.finalize])
def test_what_is_no_model_is_refused(call: Any) -> None:
    with pytest.raises(p4.ArgumentError, match="`model` must be"):
        call(3)


@pytest.mark.parametrize("bad", [torch.eye(4), torch.zeros(3, 3)])
def test_a_bad_later_site_leaves_the_earlier_ones(bad: Tensor) -> None:
    model = nn.Sequential(layer_of(), layer_of())
    p4.parameter_groups(model)
    state = copy.deepcopy(p4.finalize(copy.deepcopy(model)).state_dict())
    state["0.weight"], state["1.weight"] = 2 * torch.eye(3), bad
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(p4.CheckpointError, match=r"`1\.weight` in the checkpoint"):
        model.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_without_an_inverse_gets_one() -> None:
    layer, other = layer_of(), layer_of()
    state = {name: value for name, value in other.state_dict().items() if "tracked" not in name}
    layer.load_state_dict(state, strict=False)
    site = next(p4.sites(layer))
    product = site.perturbation.inverse(site.base) @ layer.weight
    torch.testing.assert_close(product, torch.eye(3), rtol=0, atol=1e-5)  # float32


def test_empty_tensors_are_refused() -> None:
    with pytest.raises(p4.ArgumentError, match="`base` must be not empty"):
        p4.Invertible(torch.zeros(0, 3, 3))


@pytest.mark.parametrize(
    ("option", "value"),
    [("force_every", -5), ("penalty_weight", float("nan")), ("scale", "a")],
)
def test_options_out_of_range(option: str, value: Any) -> None:
    make = partial(p4.Invertible, torch.eye(3)) if option == "scale" else p4.DeterminantBounds
    with pytest.raises(p4.ArgumentError, match=f"`{option}` must be"):
        make(**{option: value})
