"""Tiny Hugging Face models with random weights, perturbed; nothing is downloaded."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import Tensor, nn

import p4torch as p4

transformers = pytest.importorskip("transformers")

WIDTH, WORDS, LENGTH = 32, 40, 8
#: Warnings of transformers, accelerate and PEFT that concern none of what is tested.
NOISE = (
    "ignore:.*pin_memory",
    "ignore:.*use_reentrant",
    "ignore:.*gradient_checkpointing",
    "ignore:.*tie_word_embeddings",
    "ignore:.*early_stopping",
)


def llama(seed: int = 0, **options: Any) -> Any:
    """A LLaMA of two blocks."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=WORDS, max_position_embeddings=32, **options)
    return transformers.LlamaForCausalLM(config)


def gpt2(seed: int = 0) -> Any:
    """A GPT-2 of two blocks; its linear layers are transformers' `Conv1D`, weights `(in, out)`. Without dropout."""
    torch.manual_seed(seed)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, vocab_size=WORDS, n_positions=32, **dropout)
    return transformers.GPT2LMHeadModel(config)


def perturbed_llama(seed: int = 0, **options: Any) -> Any:
    """Three properties: a low-rank update, an invertible matrix, and singular values that stay."""
    model = llama(seed, **options)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[1].mlp
    p4.perturb(attention.q_proj, "weight", p4.LowRankUpdate, rank=4)
    p4.perturb(attention.v_proj, "weight", p4.Invertible, rank=2)
    p4.perturb(mlp.up_proj, "weight", p4.FixedSingularValues, block=8)
    return model


def words(count: int, seed: int = 1) -> Tensor:
    """Random texts `(count, length)`."""
    return torch.randint(0, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def examples(count: int) -> list[dict[str, Tensor]]:
    """Texts as a Trainer takes them."""
    return [{"input_ids": text, "labels": text} for text in words(count)]


def move_b(model: nn.Module, size: float = 0.1) -> None:
    """As if it had been trained."""
    with torch.no_grad():
        for site in p4.sites(model):
            for value in site.trainable().values():
                value.add_(size * torch.randn_like(value))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(words(4)).logits


def assert_equal_states(model: nn.Module, other: nn.Module) -> None:
    """To the bit."""
    for (name, value), same in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, same), name
