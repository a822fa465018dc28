"""The recipe for accelerate: accumulation, clipping, and states that resume to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretrained import NOISE, assert_equal_states, llama, perturbed_llama, words
from torch import nn
from torch.utils.data import DataLoader

import p4torch as p4

accelerate = pytest.importorskip("accelerate")
pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

EVERY, ACCUMULATED, STOP, STEPS = 3, 4, 5, 12
#: Of four micro-batches against their union, in float64.
ORDER = 1e-10


class Run:
    """A loop as accelerate's documentation has it, with three more lines."""

    def __init__(self, model: nn.Module, batch: int, accumulated: int, **options: Any) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
        optimizer = torch.optim.AdamW(p4.parameter_groups(model), lr=1e-2, weight_decay=0.1)
        loader = DataLoader(words(STEPS * 16), batch_size=batch)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.scheduler = p4.MergeScheduler(self.model, self.optimizer, every=EVERY, **options)
        self.scheduler.attach()
        self.accelerator.register_for_checkpointing(self.scheduler)

    def train(self, start: int, stop: int) -> None:
        """The optimizer's steps from one to another."""
        steps = self.accelerator.gradient_accumulation_steps
        for index, x in enumerate(self.loader):
            if not start * steps <= index < stop * steps:
                continue
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.model(input_ids=x, labels=x).loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()


def test_accumulated_steps_are_those_of_the_union() -> None:
    models = []
    for batch, accumulated in ((16, 1), (4, ACCUMULATED)):
        run = Run(perturbed_llama().double(), batch, accumulated)
        run.train(0, STEPS)
        assert run.scheduler.steps == STEPS and run.scheduler.merged > 0
        models.append(run.model)
    for (name, value), same in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(value, same, rtol=ORDER, atol=ORDER, msg=name)


@pytest.mark.parametrize("tied", [False, True])
def test_a_state_resumes_to_the_bit(tied: bool, tmp_path: Path) -> None:
    def model() -> nn.Module:
        if not tied:
            return perturbed_llama()
        return p4.perturb(llama(tie_word_embeddings=True), "lm_head.weight", p4.LowRankUpdate, rank=4)

    options: dict[str, Any] = {"rewarm": 2, "stagger": True}
    whole = Run(model(), 4, ACCUMULATED, **options)
    whole.train(0, STOP)
    whole.accelerator.save_state(str(tmp_path))
    whole.train(STOP, STEPS)
    resumed = Run(model(), 4, ACCUMULATED, **options)
    resumed.accelerator.load_state(str(tmp_path))
    assert resumed.scheduler.steps == STOP
    resumed.train(STOP, STEPS)
    assert_equal_states(whole.model, resumed.model)
    assert repr(whole.scheduler.state_dict()) == repr(resumed.scheduler.state_dict())


def test_an_unwrapped_model_is_saved_with_its_effective_weights(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    run = Run(perturbed_llama(), 4, ACCUMULATED)
    run.train(0, STOP)
    model = run.accelerator.unwrap_model(run.model)
    model.save_pretrained(tmp_path)
    plain, x = LlamaForCausalLM.from_pretrained(tmp_path), words(4)
    torch.testing.assert_close(plain(x).logits, model(x).logits, rtol=1e-5, atol=1e-5)
