"""Perturbations go on modules and come off without a trace: classes, order of parameters, copies, failures."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from typing import Any

import pytest
import torch
from tests.modules import MODULES
from torch import Tensor, nn
from torch.nn.utils import parametrize

import p4torch as p4
from p4torch.parametrize.linear import FactoredLinear

#: Outputs of float32, of size about 1, that differ by the order of the same few sums.
ROUNDING = 1e-6


class Double(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return 2 * tensor


@pytest.mark.parametrize("names", [("weight_hh_l0", "weight_ih_l0"), ("weight_ih_l0", "bias_hh_l0", "weight_hh_l0")])
def test_several_tensors_of_one_module(names: tuple[str, ...]) -> None:
    plain = nn.GRU(4, 4)
    layer, x = copy.deepcopy(plain), torch.randn(5, 2, 4)
    for name in names:
        options = {} if name.startswith("weight") else {"view": (lambda t: t[:, None], lambda t: t[:, 0])}
        p4.perturb(layer, name, p4.LowRankUpdate, **options)
    assert sorted(site.tensor_name for site in p4.sites(layer)) == sorted(names)
    with torch.no_grad():
        for site in p4.sites(layer):
            for _, value in site.perturbation.own_parameters():
                value.add_(0.1 * torch.randn_like(value))
    expected = layer(x)[0]
    p4.finalize(layer)
    torch.testing.assert_close(layer(x)[0], expected, rtol=0, atol=ROUNDING)
    assert [name for name, _ in layer.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert type(layer) is nn.GRU


@pytest.mark.filterwarnings("ignore::p4torch.ProjectionWarning")
def test_several_properties_in_one_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 3))
    p4.perturb(model, "0.weight", p4.Orthogonal, view="matrix")
    p4.perturb(model, "3.weight", p4.Invertible, rank=2)
    p4.perturb(model, "4.weight", p4.SpectralBound, bound=2.0)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=4)
    x = torch.randn(8, 1, 4, 4)
    for _ in range(8):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        scheduler.step()
    assert set(scheduler.reports) == {"0.weight", "3.weight", "4.weight"}
    expected = model(x)
    torch.testing.assert_close(p4.finalize(model)(x), expected, rtol=0, atol=ROUNDING)
    assert [type(module) for module in model] == [nn.Conv2d, nn.Tanh, nn.Flatten, nn.Linear, nn.Linear]


@pytest.mark.parametrize("first", [True, False])
def test_a_parametrization_of_somebody_else_stays(first: bool) -> None:
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    if first:
        parametrize.register_parametrization(layer, "bias", Double())
    p4.perturb(layer, "weight", p4.LowRankUpdate)
    if not first:
        parametrize.register_parametrization(layer, "bias", Double())
    assert isinstance(layer, FactoredLinear)
    expected = layer(x)
    p4.finalize(layer)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=ROUNDING)
    assert parametrize.is_parametrized(layer, "bias") and not isinstance(layer, FactoredLinear)
    parametrize.remove_parametrizations(layer, "bias")
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("which", ["the copy", "the original"])
def test_finalizing_one_copy_leaves_the_other_its_tensor(which: str) -> None:
    layer = p4.perturb(nn.Linear(3, 3), "weight", p4.LowRankUpdate)
    reference = copy.deepcopy(layer)
    one, other = (reference, layer) if which == "the copy" else (layer, reference)
    p4.finalize(one)
    assert type(one) is nn.Linear
    torch.testing.assert_close(other.weight, one.weight)
    other.weight = torch.eye(3)
    assert torch.equal(p4.finalize(other).weight, torch.eye(3))


class _Broken(p4.LowRankUpdate):
    """Fails when torch asks it to admit the tensor."""

    def right_inverse(self, tensor: Tensor) -> Tensor:
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("make", "name", "view"),
    [
        (lambda: nn.Linear(3, 3), "weight", None),
        (lambda: nn.Conv2d(2, 3, 2), "weight", "matrix"),
        (lambda: nn.LSTM(3, 3), "weight_hh_l0", "stack"),
    ],
)
def test_a_failure_on_the_way_changes_nothing(make: type[nn.Module], name: str, view: object) -> None:
    layer = make()
    tensor = getattr(layer, name)
    tensor.grad = torch.ones_like(tensor)
    before, names, kind = tensor.detach().clone(), list(layer.state_dict()), type(layer)
    with pytest.raises(RuntimeError, match="broken"):
        p4.perturb(layer, name, _Broken, view=view)
    assert type(layer) is kind and list(layer.state_dict()) == names
    assert getattr(layer, name) is tensor and torch.equal(tensor, before)
    assert tensor.grad is not None and tensor.grad.shape == tensor.shape and tensor.requires_grad
    p4.perturb(layer, name, p4.LowRankUpdate, view=view)


# --- recurrent layers -------------------------------------------------------------------------------------------


def test_a_recurrent_layer_evaluates_its_weight_once_and_keeps_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = p4.perturb(nn.LSTM(3, 4), "weight_hh_l0", p4.LowRankUpdate), torch.randn(5, 2, 3)
    calls, forward = [], p4.LowRankUpdate.forward
    monkeypatch.setattr(p4.LowRankUpdate, "forward", lambda self, base: calls.append(1) or forward(self, base))
    layer(x)
    assert len(calls) == 1
    gc.collect()
    assert not any(isinstance(value, Tensor) for value in layer._flat_weights)
    copy.deepcopy(layer)


def test_a_recurrent_layer_follows_every_change() -> None:
    layer, x = p4.perturb(nn.GRU(3, 4), "weight_hh_l0", p4.LowRankUpdate), torch.randn(5, 2, 3)
    (site,) = p4.sites(layer)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        first = layer(x)[0]
        site.perturbation.u.fill_(0.3)
        second = layer(x)[0]
        assert not torch.allclose(first, second)
        layer.flatten_parameters()
        p4.merge(layer)
        torch.testing.assert_close(layer(x)[0], second, rtol=0, atol=ROUNDING)
        layer.weight_hh_l0 = torch.zeros(12, 4)
        plain = nn.GRU(3, 4)
        plain.load_state_dict(p4.finalize(copy.deepcopy(layer)).state_dict())
        torch.testing.assert_close(layer(x)[0], plain(x)[0], rtol=0, atol=ROUNDING)
        torch.testing.assert_close(layer.double()(x.double())[0], plain.double()(x.double())[0])


def test_packed_sequences_and_states() -> None:
    plain = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    layer = p4.perturb(copy.deepcopy(plain), "weight_hh_l1", p4.LowRankUpdate, view="stack")
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(2, 5, 3), [5, 3], batch_first=True)
    state = torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    for inputs in ((packed,), (packed, state)):
        torch.testing.assert_close(layer(*inputs)[0].data, plain(*inputs)[0].data, rtol=0, atol=ROUNDING)


# --- taken off by torch's own function ----------------------------------------------------------------------------


def moved(module: nn.Module) -> nn.Module:
    """With B away from B₀."""
    with torch.no_grad():
        for site in p4.sites(module):
            for _, value in site.perturbation.own_parameters():
                value.add_(0.1 * torch.randn_like(value))
    return module


@pytest.mark.parametrize("evaluate", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_torch_removes_it_as_well(name: str, evaluate: bool) -> None:
    row = MODULES[name]
    plain, module, inputs = row.make(), moved(row.perturbed()), row.inputs()
    (site,) = p4.sites(module)
    effective = getattr(site.module, site.tensor_name).detach().clone()
    parametrize.remove_parametrizations(site.module, site.tensor_name, leave_parametrized=evaluate)
    tensor = getattr(site.module, site.tensor_name)
    assert isinstance(tensor, nn.Parameter) and tensor.requires_grad and tensor.is_contiguous()
    assert tensor.shape == effective.shape and torch.equal(tensor, effective) is evaluate
    assert [type(part) for part in module.modules()] == [type(part) for part in plain.modules()]
    assert [key for key, _ in module.named_parameters()] == [key for key, _ in plain.named_parameters()]
    plain.load_state_dict(module.state_dict())
    loaded = pickle.loads(pickle.dumps(module)) if "own-view" not in name else module  # that has lambdas
    expected, got = _first(plain(*inputs)), _first(loaded(*inputs))
    torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDING)
    _first(module(*inputs)).sum().backward()
    assert tensor.grad is not None
    assert not list(p4.sites(p4.finalize(module)))


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def test_a_frozen_tensor_stays_frozen() -> None:
    layer = nn.Linear(3, 3)
    layer.weight.requires_grad_(False)
    parametrize.remove_parametrizations(p4.perturb(layer, "weight", p4.LowRankUpdate), "weight")
    assert not layer.weight.requires_grad and type(layer) is nn.Linear


@pytest.mark.parametrize("copied", [False, True])
def test_tied_weights_are_removed_together(copied: bool) -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
    model["head"].weight = model["embedding"].weight
    moved(p4.perturb(model, "head.weight", p4.LowRankUpdate))
    original, model = model, copy.deepcopy(model) if copied else model
    effective = model["head"].weight.detach().clone()
    parametrize.remove_parametrizations(model["embedding"], "weight")
    assert model["head"].weight is model["embedding"].weight
    assert torch.equal(model["head"].weight, effective) and model["head"].weight.requires_grad
    assert type(model["head"]) is nn.Linear and type(model["embedding"]) is nn.Embedding
    assert copied == (len(list(p4.sites(original))) == 1)
    if copied:
        assert torch.equal(original["head"].weight, effective)
        assert torch.equal(original["embedding"].weight, effective)


def test_one_of_two_tensors_and_the_copy_keep_their_perturbation() -> None:
    layer, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        p4.perturb(layer, name, p4.LowRankUpdate)
    reference, expected = copy.deepcopy(moved(layer)), layer(x)[0]
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert [site.tensor_name for site in p4.sites(layer)] == ["weight_ih_l0"]
    assert len(list(p4.sites(reference))) == 2
    for module in (layer, reference):
        torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=ROUNDING)
    parametrize.remove_parametrizations(layer, "weight_ih_l0")
    assert type(layer) is nn.LSTM and layer.weight_hh_l0.requires_grad and layer.weight_ih_l0.requires_grad
    torch.testing.assert_close(layer(x)[0], expected, rtol=0, atol=ROUNDING)
    p4.perturb(layer, "weight_hh_l0", p4.LowRankUpdate)
    torch.testing.assert_close(layer(x)[0], expected, rtol=0, atol=ROUNDING)
