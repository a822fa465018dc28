"""PEFT's adapters and perturbations in one model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretrained import NOISE, assert_equal_states, examples, llama, logits, move_b, perturbed_llama, words
from torch import Tensor, nn

import p4torch as p4
from p4torch.training import P4TrainerCallback

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

#: Of float32 sums in another order.
ROUNDING = 1e-5


def adapted(model: nn.Module | None = None, thaw: bool = True) -> Any:
    """Adapters at a perturbed layer (`q_proj`) and at a plain one."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(model or perturbed_llama(), config)
    if thaw:
        for site in p4.sites(model):
            site.perturbation.requires_grad_(True)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, index: int) -> Tensor:
    x = words(8, seed=index % 2)
    loss = model(input_ids=x, labels=x).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_a_schedule_over_what_get_peft_model_froze_warns() -> None:
    model = adapted(thaw=False)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad])
    with pytest.warns(p4.StallWarning, match=r"so are all perturbations of the model.*get_peft_model.*requires_grad_"):
        p4.MergeScheduler(model, optimizer)


def trained(thaw: bool) -> tuple[nn.Module, Tensor, p4.MergeScheduler | None, set[str]]:
    """A model after 40 steps, its last loss, its merges, and the names of what has moved."""
    model = adapted(thaw=thaw)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=5) if thaw else None
    for index in range(40):
        loss = step(model, optimizer, index)
        if scheduler is not None:
            scheduler.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, start[name])}
    return model, loss, scheduler, moved


def test_adapters_and_perturbations_train_together() -> None:
    model, loss, scheduler, moved = trained(thaw=True)
    assert scheduler is not None and scheduler.merged > 0 and scheduler.skipped == 0
    assert {name for name, _ in model.named_parameters() if "lora" in name} <= moved
    assert {f"{site.name.removesuffix('weight')}parametrizations.weight.original" for site in p4.sites(model)} <= moved
    assert all("lora" in name or "parametrizations" in name for name in moved)  # PEFT froze the rest
    _, alone, _, adapters = trained(thaw=False)
    assert loss < alone and all("lora" in name for name in adapters)


@pytest.mark.parametrize("safe", [False, True])
def test_merging_adapters_into_a_perturbed_weight_is_refused(safe: bool) -> None:
    model = adapted()
    move_b(model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    with pytest.raises(p4.ArgumentError, match=r"`weight` must be left as it is.*or `finalize` the model first"):
        copy.deepcopy(model).merge_and_unload(safe_merge=safe)
    expected = logits(model)
    plain = p4.finalize(model).merge_and_unload(safe_merge=safe)
    torch.testing.assert_close(logits(plain), expected, rtol=ROUNDING, atol=ROUNDING)
    assert plain.state_dict().keys() == llama().state_dict().keys()


def test_a_perturbed_model_can_be_merged_with_adapters_at_other_layers() -> None:
    config = peft.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(perturbed_llama(), config)
    expected = logits(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=ROUNDING, atol=ROUNDING)
    assert len(list(p4.sites(merged))) == 3


def test_the_trainer_resumes_adapters_and_perturbations_to_the_bit(tmp_path: Path) -> None:
    """PEFT's checkpoints hold adapters alone: the callback's file holds the rest."""

    def run(**resume: Any) -> tuple[nn.Module, P4TrainerCallback]:
        model, callback = adapted(), P4TrainerCallback(every=3)
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=8,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_steps=4,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=examples(32), callbacks=[callback])
        trainer.train(**resume)
        return model, callback

    whole, callback = run()
    assert callback.merged > 0
    resumed, _ = run(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_equal_states(whole, resumed)
    with pytest.raises(p4.ArgumentError, match="`finalize_on_save` must be False"):
        P4TrainerCallback(finalize_on_save=True).on_train_begin(
            transformers.TrainingArguments(str(tmp_path), use_cpu=True), None, None, model=whole, optimizer=None
        )
