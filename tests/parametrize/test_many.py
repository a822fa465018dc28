"""`perturb_all`: one property for the tensors of all modules that match."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

import p4torch as p4
from p4torch.errors import ArgumentError

#: Of float32: a weight at B₀ against itself.
ROUNDING = 1e-6


class Block(nn.Module):
    """A part of a nested model."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x + self.attention(x, x, x)[0]))


class Nested(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


MLP = [f"blocks.{block}.mlp.{layer}.weight" for block in (0, 1) for layer in (0, 2)]
OUT = [f"blocks.{block}.attention.out_proj.weight" for block in (0, 1)]
CASES: dict[str, tuple[Any, list[str]]] = {
    "the end of a path": ("out_proj", OUT),
    "a glob": ("blocks.*.mlp.*", MLP),
    "a glob for the end": ("mlp.0", MLP[::2]),
    "a whole path": ("head", ["head.weight"]),
    "a regular expression": (re.compile(r"blocks\.\d+\.mlp\.[02]"), MLP),
    "a class": (nn.Linear, [OUT[0], *MLP[:2], OUT[1], *MLP[2:], "head.weight"]),
    "a predicate": (lambda path, module: getattr(module, "in_features", 0) == 16, MLP[1::2]),
    "several": (["head", nn.Bilinear, re.compile("no")], ["head.weight"]),
    "all the same": (["*.mlp.0", "mlp.0"], MLP[::2]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_matches(name: str) -> None:
    match, expected = CASES[name]
    model = Nested()
    x = torch.randn(3, 5, 8)
    before = model(x)
    assert p4.perturb_all(model, p4.LowRankUpdate, match, rank=2) is model
    assert [site.name for site in p4.sites(model)] == expected
    assert all(site.perturbation.rank == 2 for site in p4.sites(model))
    torch.testing.assert_close(model(x), before, rtol=ROUNDING, atol=ROUNDING)


def test_what_is_excluded() -> None:
    model = p4.perturb_all(Nested(), p4.LowRankUpdate, nn.Linear, exclude=["head", "out_proj"])
    assert [site.name for site in p4.sites(model)] == MLP


def test_another_tensor_and_a_view() -> None:
    model = p4.perturb_all(
        Nested(), p4.LowRankUpdate, nn.MultiheadAttention, tensor_name="in_proj_weight", view="stack"
    )
    assert [tuple(site.base.shape) for site in p4.sites(model)] == [(3, 8, 8)] * 2


def test_the_model_itself() -> None:
    layer = p4.perturb_all(nn.Linear(4, 4), p4.LowRankUpdate, nn.Linear)
    assert [site.name for site in p4.sites(layer)] == ["weight"]


@pytest.mark.parametrize("match", ["nothing", re.compile("head.weight"), nn.Bilinear, lambda path, module: False, []])
def test_nothing_matches(match: Any) -> None:
    with pytest.raises(ArgumentError, match=r"`match` must be one that modules with a `weight` match, got none of b"):
        p4.perturb_all(Nested(), p4.LowRankUpdate, match)


def test_no_such_tensor() -> None:
    with pytest.raises(ArgumentError, match="a model that has no `kernel`"):
        p4.perturb_all(Nested(), p4.LowRankUpdate, "*", tensor_name="kernel")


@pytest.mark.parametrize("option", ["match", "exclude"])
@pytest.mark.parametrize("value", [3, None, nn.Linear(2, 2), torch.Tensor])
def test_matches_of_another_kind_are_refused(option: str, value: Any) -> None:
    options = {"match": nn.Linear, option: value}
    with pytest.raises(ArgumentError, match=f"`{option}` must be a glob, a compiled regular expression"):
        p4.perturb_all(Nested(), p4.LowRankUpdate, **options)


@pytest.mark.filterwarnings("ignore::p4torch.ProjectionWarning")
def test_all_or_none() -> None:
    """The first matrices are projected before a vector is refused: all have their values again."""
    model = Nested()
    plain = copy.deepcopy(model)
    model.head.weight.requires_grad_(False)
    with pytest.raises(ArgumentError, match=r"`blocks.0.norm.weight`: `base` must be of at least 2 dimensions"):
        p4.perturb_all(model, p4.Orthogonal, "*")
    assert not any(p4.sites(model)) and not model.head.weight.requires_grad
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(value.requires_grad for name, value in model.named_parameters() if name != "head.weight")


def test_what_was_perturbed_before_stays_after_an_error() -> None:
    model = p4.perturb(Nested(), "head.weight", p4.LowRankUpdate)
    with pytest.raises(ArgumentError, match=r"`head.weight`: `tensor_name` must be a tensor without a parametrization"):
        p4.perturb_all(model, p4.LowRankUpdate, nn.Linear)
    assert [site.name for site in p4.sites(model)] == ["head.weight"]
    model.load_state_dict(Nested().state_dict())  # a plain checkpoint still loads


def test_tied_weights_are_perturbed_once() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    model["head"].weight = model["table"].weight
    p4.perturb_all(model, p4.LowRankUpdate, [nn.Embedding, nn.Linear])
    assert [site.name for site in p4.sites(model)] == ["table.weight"]
    p4.finalize(model)
    assert model["head"].weight is model["table"].weight


def test_a_language_model() -> None:
    """As PEFT's `target_modules`."""
    pretrained = pytest.importorskip("tests.pretrained")
    model = p4.perturb_all(pretrained.llama(), p4.LowRankUpdate, ["q_proj", "v_proj"], rank=4)
    expected = [f"model.layers.{layer}.self_attn.{name}.weight" for layer in (0, 1) for name in ("q_proj", "v_proj")]
    assert [site.name for site in p4.sites(model)] == expected
    model = p4.perturb_all(pretrained.gpt2(), p4.LowRankUpdate, r"h.*.c_*", rank=4)
    assert len(list(p4.sites(model))) == 8
