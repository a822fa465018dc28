"""Which tensors can carry a perturbation; dotted paths; weights that two modules share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm

import p4torch as p4

#: Outputs of float32, of size about 1, that differ by the order of the same few sums.
ROUNDING = 1e-6


class Language(nn.Module):
    """Embedding and output head, tied or not, in this order or the other."""

    def __init__(self, tied: bool = True, head_first: bool = False) -> None:
        super().__init__()
        if head_first:
            self.head, self.embedding = nn.Linear(4, 9), nn.Embedding(9, 4)
        else:
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(words)))


@torch.no_grad()
def move(model: nn.Module) -> None:
    for site in p4.sites(model):
        for _, value in site.perturbation.own_parameters():
            value.add_(0.1 * torch.randn_like(value))


# --- paths ------------------------------------------------------------------------------------------------------


def test_a_dotted_path_is_the_same_as_the_layers_own_name() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))})
    torch.manual_seed(0)
    reference = copy.deepcopy(model)
    assert p4.perturb(model, "a.1.weight", p4.LowRankUpdate, rank=2) is model
    torch.manual_seed(0)
    p4.perturb(reference["a"][1], "weight", p4.LowRankUpdate, rank=2)
    assert [site.name for site in p4.sites(model)] == [site.name for site in p4.sites(reference)] == ["a.1.weight"]
    model["a"].load_state_dict(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).state_dict())
    model["a"][1].load_state_dict(nn.Linear(3, 3).state_dict())
    p4.finalize(model)
    assert not any(module._load_state_dict_pre_hooks for module in model.modules())


def test_a_compiled_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    compiled = torch.compile(model, backend="eager")
    p4.perturb(compiled, "0.weight", p4.LowRankUpdate)
    assert [site.name for site in p4.sites(compiled)] == ["0.weight"]
    single = nn.Linear(3, 3)
    p4.perturb(torch.compile(single, backend="eager"), "weight", p4.LowRankUpdate)
    assert [site.name for site in p4.sites(single)] == ["weight"]


# --- tied weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("path", ["head.weight", "embedding.weight"])
def test_tied_weights_stay_tied(path: str, head_first: bool) -> None:
    model, words = Language(head_first=head_first), torch.randint(0, 9, (6, 3))
    plain = copy.deepcopy(model)
    tied = model.head.weight
    p4.perturb(model, path, p4.LowRankUpdate, rank=2)
    (site,) = p4.sites(model)
    torch.testing.assert_close(model(words), plain(words), rtol=0, atol=ROUNDING)

    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=5)
    assert len([value for value in model.parameters() if value.requires_grad]) == 3  # U, V and the bias
    for _ in range(20):
        optimizer.zero_grad()
        model(words).logsumexp(-1).mean().backward()
        optimizer.step()
        before = model(words).detach()
        if scheduler.step():
            torch.testing.assert_close(model(words), before, rtol=0, atol=ROUNDING)
    assert scheduler.merged == 4
    assert torch.equal(model.head.weight, model.embedding.weight)
    assert not torch.equal(model.head.weight, plain.head.weight)

    move(model)
    expected = model(words).detach()
    reference = p4.finalize(copy.deepcopy(model))
    assert reference.head.weight is reference.embedding.weight and torch.equal(model(words), expected)
    p4.finalize(model)
    torch.testing.assert_close(model(words), expected, rtol=0, atol=ROUNDING)
    assert model.head.weight is model.embedding.weight is tied is site.base
    assert type(model.head) is nn.Linear and type(model.embedding) is nn.Embedding
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(words), model(words))


def test_gradients_of_tied_weights_add_up() -> None:
    model, words = Language().double(), torch.randint(0, 9, (6, 3))
    p4.perturb(model, "head.weight", p4.LowRankUpdate, rank=2, scale=1.0)
    move(model)
    (site,) = p4.sites(model)
    model(words).square().sum().backward()
    weight = site.perturbation(site.base).detach().requires_grad_()
    tied = {"embedding.weight": weight, "head.weight": weight, "head.bias": model.head.bias}
    plain = p4.finalize(copy.deepcopy(model))
    torch.func.functional_call(plain, tied, words, tie_weights=False).square().sum().backward()
    torch.testing.assert_close(site.perturbation.u.grad, weight.grad @ site.perturbation.v)


def test_checkpoints_of_tied_weights() -> None:
    model, plain, words = Language(), Language(), torch.randint(0, 9, (6, 3))
    p4.perturb(model, "head.weight", p4.LowRankUpdate)
    move(model)
    other = Language()
    p4.perturb(other, "head.weight", p4.LowRankUpdate)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(words), model(words))
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model(words), plain(words), rtol=0, atol=ROUNDING)


def test_three_places_and_two_names_in_one_module() -> None:
    module = nn.Module()
    module.a = module.b = nn.Parameter(torch.randn(3, 3))
    module.layer = nn.Linear(3, 3)
    module.layer.weight = module.a
    p4.perturb(module, "b", p4.LowRankUpdate)
    move(module)
    assert torch.equal(module.a, module.b) and torch.equal(module.layer.weight, module.a)
    assert [site.name for site in p4.sites(module)] == ["b"]  # the name that was given
    p4.finalize(module)
    assert module.a is module.b is module.layer.weight


@pytest.mark.parametrize(
    "use",
    [
        lambda model: list(p4.sites(model)),
        p4.parameter_groups,
        p4.merge,
        lambda model: p4.MergeScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1)),
    ],
)
def test_a_tie_that_perturb_could_not_see_is_refused(use: Callable[[nn.Module], Any]) -> None:
    model = Language()
    p4.perturb(model.head, "weight", p4.LowRankUpdate)
    with pytest.raises(p4.ArgumentError, match=r"`embedding\.weight` and `head\.weight`: perturb them together"):
        use(model)
    p4.finalize(model)  # the way back
    assert model.head.weight is model.embedding.weight and type(model.head) is nn.Linear
    list(p4.sites(model))


def test_perturbing_both_sides_of_a_tie_apart_is_refused() -> None:
    model = Language()
    p4.perturb(model.embedding, "weight", p4.LowRankUpdate)
    p4.perturb(model.head, "weight", p4.LowRankUpdate)
    with pytest.raises(p4.ArgumentError, match=r"`head\.weight` and `embedding\.weight`"):
        list(p4.sites(model))


def test_two_parameters_in_one_memory_are_refused() -> None:
    model = Language(tied=False)
    model.head.weight = nn.Parameter(model.embedding.weight.data)
    with pytest.raises(p4.ArgumentError, match=r"`embedding\.weight` and `head\.weight`: two Parameters that share"):
        p4.perturb(model, "head.weight", p4.LowRankUpdate)
    assert list(p4.sites(model)) == []


def test_a_module_that_is_used_twice_is_no_tie() -> None:
    layer = nn.Linear(3, 3)
    model, x = nn.Sequential(layer, nn.Tanh(), layer), torch.randn(2, 3)
    expected = model(x)
    p4.perturb(model, "2.weight", p4.LowRankUpdate)
    assert [site.name for site in p4.sites(model)] == ["0.weight"]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=ROUNDING)
    move(model)
    expected = model(x)
    assert len(p4.merge(model)) == 1
    p4.finalize(model)
    assert model[0] is model[2]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=ROUNDING)


# --- what is refused --------------------------------------------------------------------------------------------


def _whole_numbers() -> nn.Module:
    module = nn.Module()
    module.table = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    return module


def _perturbed() -> nn.Module:
    return p4.perturb(nn.Linear(3, 3), "weight", p4.LowRankUpdate)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda: nn.Linear(3, 3), "wieght", r"a parameter of Linear \(weight, bias\), got 'wieght'"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), "1.weight", "a path in Sequential, got '1.weight': there is no '1'"),
        (lambda: nn.Linear(3, 3), 3, "`tensor_name` must be a name or a dotted path, got int"),
        (lambda: nn.BatchNorm1d(3), "running_mean", "got 'running_mean', a buffer"),
        (_whole_numbers, "table", "of a floating-point dtype, got 'table', torch.int8"),
        (lambda: nn.LazyLinear(3), "weight", "an initialized parameter, got 'weight' of a lazy module"),
        (lambda: parametrizations.weight_norm(nn.Linear(3, 3)), "weight", "got 'weight', which has one: _WeightNorm"),
        (lambda: parametrizations.orthogonal(nn.Linear(3, 3)), "weight", "which has one: _Orthogonal"),
        (_perturbed, "weight", "which has one: LowRankUpdate"),
        (_perturbed, "parametrizations.weight.original", "a tensor of a plain module"),
        (_perturbed, "parametrizations.weight.0.u", "a tensor of a plain module"),
        (lambda: spectral_norm(nn.Linear(3, 3)), "weight", r"a hook \(weight_norm, spectral_norm, prune\) computes"),
        (lambda: prune.l1_unstructured(nn.Linear(3, 3), "weight", 2), "weight", "a hook"),
        (lambda: nn.Embedding(3, 4, sparse=True), "weight", "an Embedding with a dense gradient, got sparse=True"),
        (lambda: nn.EmbeddingBag(3, 4, sparse=True), "weight", "an EmbeddingBag with a dense gradient"),
        (lambda: nn.Embedding(3, 4, max_norm=1.0), "weight", "does not rescale its rows, got max_norm=1.0"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_what_is_no_place_for_a_perturbation(make: Callable[[], nn.Module], name: Any, message: str) -> None:
    module = make()
    kind, keys, hooks = type(module), list(module.state_dict()), len(module._load_state_dict_pre_hooks)
    with pytest.raises(p4.ArgumentError, match=message):
        p4.perturb(module, name, p4.LowRankUpdate)
    assert type(module) is kind and list(module.state_dict()) == keys
    assert len(module._load_state_dict_pre_hooks) == hooks


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_a_quantized_layer_has_no_parameter() -> None:
    module = torch.ao.nn.quantized.Linear(3, 3)
    with pytest.raises(p4.ArgumentError, match=r"a parameter of Linear \(none\), got 'weight'"):
        p4.perturb(module, "weight", p4.LowRankUpdate)


def test_a_distributed_wrapper_is_too_late() -> None:
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = nn.Linear(3, 3)
    with pytest.raises(p4.ArgumentError, match="`module` must be perturbed before it is wrapped"):
        p4.perturb(wrapper, "weight", p4.LowRankUpdate)


# --- padding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("property", [p4.Orthogonal, p4.SpectralBound])
@pytest.mark.filterwarnings("ignore::p4torch.ProjectionWarning")
def test_a_padding_row_that_would_move_is_refused(property: Any) -> None:
    layer = nn.Embedding(6, 4, padding_idx=1)
    with pytest.raises(p4.ArgumentError, match=rf"without a padding row, which {property.__name__} would move, got"):
        p4.perturb(layer, "weight", property)
    assert type(layer) is nn.Embedding
    with pytest.raises(p4.ArgumentError, match="without a padding row"):
        p4.perturb(layer, "weight", p4.LowRankUpdate, view=(lambda t: t.mT, lambda t: t.mT))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_padding_row_stays(optimizer: Any) -> None:
    layer = nn.Embedding(6, 4, padding_idx=1)
    with torch.no_grad():
        layer.weight[1] = torch.randn(4)
    before = layer.weight.detach().clone()
    p4.perturb(layer, "weight", p4.LowRankUpdate, rank=2)
    made = optimizer(p4.parameter_groups(layer), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, made, every=3)
    for _ in range(10):
        made.zero_grad()
        layer(torch.arange(6)).square().sum().backward()
        made.step()
        scheduler.step()
    assert torch.equal(layer.weight[1], before[1])
    assert all(not torch.equal(layer.weight[row], before[row]) for row in (0, 2, 3, 4, 5))
