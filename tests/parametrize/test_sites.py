"""Putting perturbations on tensors, merging them, taking them off, and checkpoints on the way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import p4torch as p4
from p4torch.parametrize.sites import counter_based_generator


def plain_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))


def perturbed_model(**options: Any) -> nn.Sequential:
    model = plain_model()
    for index in (0, 2):
        p4.perturb(model[index], "weight", p4.Invertible, **{"rank": 1, "scale": 1.0} | options)
    return model


@torch.no_grad()
def move(model: nn.Module, size: float = 0.1) -> None:
    for site in p4.sites(model):
        for value in site.perturbation.parameters(recurse=False):
            value.add_(size * torch.randn_like(value))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


# --- perturb ----------------------------------------------------------------------------------------------------


def test_perturb_keeps_the_weight_and_freezes_it() -> None:
    layer = nn.Linear(4, 4)
    weight = layer.weight.detach().clone()
    assert p4.perturb(layer, "weight", p4.Invertible, rank=2) is layer
    assert torch.equal(layer.weight, weight)
    (site,) = p4.sites(layer)
    assert not site.base.requires_grad and site.base.grad is None
    assert (site.name, site.tensor_name, site.module) == ("weight", "weight", layer)
    assert isinstance(site.base, nn.Parameter)  # not a buffer: distributed wrappers broadcast those


def test_sites_names_and_sharing() -> None:
    model = perturbed_model()
    assert [site.name for site in p4.sites(model)] == ["0.weight", "2.weight"]
    shared = nn.ModuleList([model[0], model[0]])
    assert [site.name for site in p4.sites(shared)] == ["0.weight"]
    assert list(p4.sites(plain_model())) == []


def test_tensors_other_than_weight_of_any_module() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.eye(3))
            self.b = nn.Parameter(torch.eye(3).repeat(2, 1, 1))

    module = Own()
    p4.perturb(module, "a", p4.Invertible)
    p4.perturb(module, "b", p4.Invertible, form="exponential")
    assert [site.name for site in p4.sites(module)] == ["a", "b"]
    p4.finalize(module)
    assert {name for name, _ in module.named_parameters()} == {"a", "b"}


def test_parameter_groups() -> None:
    model = perturbed_model()
    model[3].weight.requires_grad_(False)
    others, b = p4.parameter_groups(model, lr=3e-3)
    assert b["weight_decay"] == 0 and b["lr"] == 3e-3
    assert len(b["params"]) == 4
    assert {id(value) for value in others["params"]} == {id(model[0].bias), id(model[2].bias), id(model[3].bias)}


@pytest.mark.parametrize(
    ("prepare", "tensor_name", "options", "message"),
    [
        (lambda m: m, "weights", {}, r"`tensor_name` must be a parameter of Linear \(weight, bias\), got 'weights'"),
        (lambda m: p4.perturb(m, "weight", p4.Invertible), "weight", {}, "a tensor without a parametrization"),
        (lambda m: nn.Linear(3, 3, bias=False), "bias", {}, r"`tensor_name` must be a parameter of Linear \(weight\)"),
        (lambda m: nn.Tanh(), "weight", {}, r"`tensor_name` must be a parameter of Tanh \(none\), got 'weight'"),
        (lambda m: nn.Linear(3, 4), "weight", {}, r"`base` must be square, \(..., n, n\), got \(4, 3\)"),
        (lambda m: m, "bias", {}, r"`base` must be of at least 2 dimensions, got \(3,\)"),
        (lambda m: m, "weight", {"rank": 0}, "`rank` must be an integer >= 1, got 0"),
        (lambda m: _filled(0.0), "weight", {}, "`base` must be nonsingular"),
        (lambda m: _filled(torch.inf), "weight", {}, "`base` must be finite, got 9 non-finite entries of 9"),
    ],
)
def test_bad_input_changes_nothing(prepare: Any, tensor_name: str, options: dict[str, Any], message: str) -> None:
    module = prepare(nn.Linear(3, 3))
    before, kind, hooks = snapshot(module), type(module), len(module._load_state_dict_pre_hooks)
    with pytest.raises(p4.ArgumentError, match=message):
        p4.perturb(module, tensor_name, p4.Invertible, **options)
    assert_unchanged(module, before)
    assert type(module) is kind and len(module._load_state_dict_pre_hooks) == hooks


def _filled(value: float) -> nn.Linear:
    layer = nn.Linear(3, 3)
    nn.init.constant_(layer.weight, value)
    return layer


def test_a_module_must_be_a_module() -> None:
    with pytest.raises(p4.ArgumentError, match=r"`module` must be an nn\.Module, got Tensor"):
        p4.perturb(torch.eye(2), "weight", p4.Invertible)  # type: ignore[arg-type]


# --- merge and finalize -----------------------------------------------------------------------------------------


def test_merge_reports_every_site() -> None:
    model = perturbed_model()
    move(model)
    x = torch.randn(3, 4)
    before = model(x)
    reports = p4.merge(model, force=True)
    assert [(report.site, report.ok, report.index) for report in reports] == [
        ("0.weight", True, 1),
        ("2.weight", True, 1),
    ]
    torch.testing.assert_close(model(x), before)


def test_merge_uses_no_global_randomness() -> None:
    model = perturbed_model()
    state = torch.get_rng_state()
    p4.merge(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_directions_are_a_pure_function_of_seed_site_and_index() -> None:
    def drawn(*key: Any) -> Tensor:
        return torch.randn(8, generator=counter_based_generator(*key))

    first = drawn(0, "a.weight", 0)
    torch.manual_seed(5)
    assert torch.equal(drawn(0, "a.weight", 0), first)
    for other in ((1, "a.weight", 0), (0, "b.weight", 0), (0, "a.weight", 1), (0, "a.weight", 10)):
        assert not torch.equal(drawn(*other), first)


def test_merged_directions_are_reproducible_in_two_models() -> None:
    model = perturbed_model()
    reference = copy.deepcopy(model)
    for number in (model, reference):
        torch.randn(int(torch.randint(1, 9, ())))
        p4.merge(number)
        p4.merge(number)
    assert_unchanged(reference, snapshot(model))
    v = [site.perturbation.v for site in p4.sites(model)]  # type: ignore[union-attr]
    assert not torch.equal(v[0], v[1])


def test_finalize_gives_plain_modules_back() -> None:
    model, plain = perturbed_model(), plain_model()
    p4.MergeScheduler(model, torch.optim.Adam(model.parameters()))
    move(model)
    x = torch.randn(3, 4)
    before = model(x).detach()
    assert p4.finalize(model) is model
    torch.testing.assert_close(model(x), before)
    assert [type(module) for module in model] == [type(module) for module in plain]
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert all(value.requires_grad for value in model.parameters())
    assert not any(module._load_state_dict_pre_hooks for module in model.modules())
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), before)


def test_finalize_keeps_frozen_weights_frozen() -> None:
    layer = nn.Linear(3, 3)
    layer.weight.requires_grad_(False)
    p4.finalize(p4.perturb(layer, "weight", p4.Invertible))
    assert not layer.weight.requires_grad and layer.bias.requires_grad


def test_penalty_sums_over_sites() -> None:
    model = perturbed_model(bounds=p4.DeterminantBounds(change=(-0.01, 0.01)))
    move(model)
    parts = [site.perturbation.penalty(site.base) for site in p4.sites(model)]
    assert p4.penalty(model).item() == pytest.approx(sum(part.item() for part in parts))
    with pytest.raises(p4.ArgumentError, match="`model` must be a module with at least one perturbed tensor"):
        p4.penalty(plain_model())
