"""Activation checkpointing of Hugging Face models: the forward pass runs twice, the result is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.pretrained import NOISE, assert_equal_states, gpt2, llama, words
from torch import nn

import p4torch as p4

pytest.importorskip("transformers")
pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

EVERY, STEPS = 5, 30


def perturbed_llama() -> nn.Module:
    model = llama()
    for block in model.model.layers:
        p4.perturb(block, "self_attn.q_proj.weight", p4.LowRankUpdate, rank=4)
        p4.perturb(block, "mlp.up_proj.weight", p4.FixedSingularValues, block=8)
    return model


def perturbed_gpt2() -> nn.Module:
    """Of `Conv1D` layers."""
    model = gpt2()
    for block in model.transformer.h:
        p4.perturb(block, "attn.c_attn.weight", p4.LowRankUpdate, rank=4)
        p4.perturb(block, "mlp.c_fc.weight", p4.FixedSingularValues, block=8)
    return model


MODELS: dict[str, Callable[[], Any]] = {"llama": perturbed_llama, "gpt2": perturbed_gpt2}


def trained(make: Callable[[], Any], **checkpointing: Any) -> tuple[nn.Module, float, float]:
    """The model, its first loss, and its last one."""
    model = make()
    if checkpointing:
        model.gradient_checkpointing_enable(checkpointing)
    optimizer = torch.optim.AdamW(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=EVERY)
    x, losses = words(8), []
    for _ in range(STEPS):
        loss = model(input_ids=x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    assert scheduler.merged > 0 and scheduler.skipped == 0
    return model, losses[0], losses[-1]


@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_changes_nothing(name: str) -> None:
    plain, first, last = trained(MODELS[name])
    assert last < first / 2
    for use_reentrant in (False, True):
        same, *losses = trained(MODELS[name], use_reentrant=use_reentrant)
        assert losses == [first, last]
        assert_equal_states(plain, same)
