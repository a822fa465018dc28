"""`save_pretrained` and `from_pretrained` of perturbed Hugging Face models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.pretrained import assert_equal_states, gpt2, llama, logits, move_b, perturbed_llama
from torch import nn

import p4torch as p4

transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

#: Of float32: a factored product against a dense one.
ROUNDING = 1e-5


def perturbed_gpt2() -> nn.Module:
    """`Conv1D` is no `nn.Linear`: its weight is `(in, out)`, and computed densely."""
    model = gpt2()
    p4.perturb(model, "transformer.h.0.attn.c_attn.weight", p4.LowRankUpdate, rank=4)
    p4.perturb(model, "transformer.h.1.mlp.c_proj.weight", p4.FixedSingularValues, block=8)
    return model


def tied(inner: Callable[[], nn.Module], path: str) -> nn.Module:
    """A table of words that is used at both ends."""
    return p4.perturb(inner(), path, p4.LowRankUpdate, rank=4)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": perturbed_llama,
    "gpt2": perturbed_gpt2,
    "llama, tied": lambda: tied(lambda: llama(tie_word_embeddings=True), "lm_head.weight"),
    "gpt2, tied": lambda: tied(gpt2, "transformer.wte.weight"),
}


def moved(name: str) -> nn.Module:
    """A model in the middle of an interval, after a merge."""
    model = MODELS[name]()
    p4.parameter_groups(model)  # as for an optimizer
    move_b(model)
    p4.merge(model)
    move_b(model)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_perturbed_model_is_saved_with_its_effective_weights(name: str, tmp_path: Path) -> None:
    model = moved(name)
    model.save_pretrained(tmp_path)
    plain, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(p4.sites(plain)) and not info["missing_keys"]
    torch.testing.assert_close(logits(plain), logits(model), rtol=ROUNDING, atol=ROUNDING)
    assert logits(plain).sub(logits(MODELS[name]())).abs().max() > 100 * ROUNDING


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_perturbed_model_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    model, other = moved(name), MODELS[name]()
    p4.parameter_groups(other)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and (not missing or name != "llama")  # of tied weights, the file has one
    assert_equal_states(model, other)


@pytest.mark.parametrize("name", MODELS)
def test_a_finalized_copy_is_a_plain_checkpoint(name: str, tmp_path: Path) -> None:
    model = moved(name)
    before = copy.deepcopy(model.state_dict())
    p4.finalize(copy.deepcopy(model)).save_pretrained(tmp_path)
    assert not any("parametrizations" in key for key in load_file(tmp_path / "model.safetensors"))
    plain = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), logits(model), rtol=ROUNDING, atol=ROUNDING)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    model.save_pretrained(tmp_path)
    assert any("parametrizations" in key for key in load_file(tmp_path / "model.safetensors"))


def test_a_copy_saves_its_own_weights(tmp_path: Path) -> None:
    model = moved("llama")
    one = copy.deepcopy(model)
    with torch.no_grad():
        one.lm_head.weight.zero_()
    one.save_pretrained(tmp_path)
    assert not load_file(tmp_path / "model.safetensors")["lm_head.weight"].any()
    model.save_pretrained(tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["lm_head.weight"], model.lm_head.weight)


def test_shards_and_dtypes_of_the_file(tmp_path: Path) -> None:
    model = moved("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = p4.finalize(copy.deepcopy(model))
    assert_equal_states(plain, expected)


def test_a_model_inside_of_another_module_is_guarded_by_the_scheduler(tmp_path: Path) -> None:
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = perturbed_llama()

    task = Task()
    optimizer = torch.optim.SGD(p4.parameter_groups(task), lr=0.1)
    p4.MergeScheduler(task, optimizer)
    move_b(task)
    task.model.save_pretrained(tmp_path)
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), logits(task.model), rtol=ROUNDING, atol=ROUNDING)


def test_a_state_that_is_given_is_saved(tmp_path: Path) -> None:
    model = moved("llama")
    given = {"lm_head.weight": torch.ones(2, 2)}
    model.save_pretrained(tmp_path, state_dict=given)
    assert load_file(tmp_path / "model.safetensors").keys() == given.keys()
    model.save_pretrained(tmp_path, True, {name: 0 * value for name, value in model.state_dict().items()})
    assert not load_file(tmp_path / "model.safetensors")["lm_head.weight"].any()
