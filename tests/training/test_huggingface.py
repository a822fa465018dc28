"""Merges under the real Trainer of transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretrained import NOISE, assert_equal_states, examples, llama, logits, perturbed_llama
from torch import Tensor, nn

import p4torch as p4

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from p4torch.training import P4TrainerCallback  # noqa: E402

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

EVERY, STEPS, STOP = 3, 10, 5
#: Of float32 products in another order, over a few steps.
ROUNDING = 1e-5
#: Of the sum of four micro-batches against their union, in float64.
ORDER = 1e-10


def trainer(model: nn.Module, path: Path, callback: Any = None, count: int = 64, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "seed": 3,
    }
    arguments = transformers.TrainingArguments(str(path), **{**settings, **options})
    return transformers.Trainer(
        model, arguments, train_dataset=examples(count), callbacks=[] if callback is None else [callback]
    )


def trained(path: Path, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, P4TrainerCallback]:
    model, callback = model or perturbed_llama(), P4TrainerCallback(every=EVERY)
    trainer(model, path, callback, **options).train()
    return model, callback


def test_trainer_merges_and_trains(tmp_path: Path) -> None:
    before, x = perturbed_llama(), examples(16)
    model, callback = trained(tmp_path, count=16, max_steps=60)
    assert callback.scheduler is not None and callback.scheduler.steps == 60
    assert (callback.merged, callback.skipped) == (callback.scheduler.steps // EVERY * blocks(model), 0)
    assert loss(model, x) < loss(before, x) / 2
    for site in p4.sites(model):
        assert float(site.perturbation.defect(site.base).max()) < ROUNDING


def blocks(model: nn.Module) -> int:
    """How many tensors a merge of the whole model merges."""
    return sum(site.perturbation.skips.numel() for site in p4.sites(model))


def loss(model: nn.Module, texts: list[dict[str, Tensor]]) -> float:
    batch = {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
    with torch.no_grad():
        return float(model(**batch).loss)


def test_accumulated_steps_are_those_of_the_union(tmp_path: Path) -> None:
    """A merge between the micro-batches of a step, or one counted for each, would lead elsewhere."""
    options = {"count": 160, "optim": "adamw_torch", "lr_scheduler_type": "constant"}
    whole, one = trained(tmp_path, perturbed_llama().double(), per_device_train_batch_size=16, **options)
    parts, four = trained(
        tmp_path,
        perturbed_llama().double(),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        **options,
    )
    assert one.scheduler is not None and four.scheduler is not None
    assert one.scheduler.steps == four.scheduler.steps == STEPS and one.merged == four.merged > 0
    for (name, value), same in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(value, same, rtol=ORDER, atol=ORDER, msg=name)


@pytest.mark.parametrize("options", [{}, {"optim": "adafactor"}, {"optim": "sgd"}, {"lr_scheduler_type": "cosine"}])
def test_b_does_not_decay_under_the_default_optimizer(options: dict[str, Any], tmp_path: Path) -> None:
    model, callback = perturbed_llama(), P4TrainerCallback(every=STEPS + 1)
    run = trainer(model, tmp_path, callback, max_steps=1, **options)
    run.train()
    b = {id(value) for site in p4.sites(model) for value in site.trainable().values()}
    decays = {id(value): group["weight_decay"] for group in run.optimizer.param_groups for value in group["params"]}
    assert {decays[key] for key in b} == {0.0}
    assert decays[id(model.lm_head.weight)] == 0.1 and decays[id(model.model.norm.weight)] == 0.0
    assert len(decays) == sum(value.requires_grad for value in model.parameters())


def test_without_decay_of_b_the_result_is_that_of_groups_made_by_hand(tmp_path: Path) -> None:
    """B alone would decay in the Trainer's own groups: everything else decays in both runs."""
    model, _ = trained(tmp_path, optim="adamw_torch")
    same = perturbed_llama()
    b = {id(value) for site in p4.sites(same) for value in site.trainable().values()}
    named = [(name, value) for name, value in same.named_parameters() if value.requires_grad]
    spared = [value for name, value in named if id(value) in b or "norm" in name]
    decaying = [value for name, value in named if id(value) not in b and "norm" not in name]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    by_hand = trainer(same, tmp_path, P4TrainerCallback(every=EVERY), max_steps=STEPS)
    by_hand.optimizer = torch.optim.AdamW(groups, lr=1e-2)
    by_hand.train()
    assert_equal_states(model, same)


def test_an_optimizer_that_decays_b_is_refused(tmp_path: Path) -> None:
    model = perturbed_llama()
    run = trainer(model, tmp_path, P4TrainerCallback())
    run.optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], weight_decay=0.2)
    with pytest.raises(p4.OptimizerError, match=r"must not decay perturbations, got weight_decay=0\.2 .*parameter_gro"):
        run.train()
    run = trainer(model, tmp_path, P4TrainerCallback(), max_steps=1)
    run.optimizer = torch.optim.AdamW(p4.parameter_groups(model), weight_decay=0.2)
    run.train()


RESUMED: dict[str, dict[str, Any]] = {
    "default": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "clipped, cosine": {"max_grad_norm": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 3},
    "tied": {},
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumes_to_the_bit_in_the_middle_of_an_interval(name: str, tmp_path: Path) -> None:
    options = {**RESUMED[name], "save_strategy": "steps", "save_steps": STOP}

    def model() -> nn.Module:
        if name != "tied":
            return perturbed_llama()
        tied = llama(tie_word_embeddings=True)
        return p4.perturb(tied, "lm_head.weight", p4.LowRankUpdate, rank=4)

    def callback() -> P4TrainerCallback:
        return P4TrainerCallback(every=EVERY, rewarm=2, stagger=True)

    whole, resumed, callbacks = model(), model(), [callback(), callback()]
    trainer(whole, tmp_path, callbacks[0], **options).train()
    again = trainer(resumed, tmp_path, callbacks[1], **options)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STOP}"))
    assert_equal_states(whole, resumed)
    assert repr(callbacks[0].scheduler.state_dict()) == repr(callbacks[1].scheduler.state_dict())


def test_every_checkpoint_is_one_of_the_plain_model(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, save_strategy="steps", save_steps=STEPS)
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path / f"checkpoint-{STEPS}")
    assert not any(p4.sites(plain))
    torch.testing.assert_close(logits(plain), logits(model), rtol=ROUNDING, atol=ROUNDING)


def test_save_model_writes_the_plain_model_if_asked(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, callback = perturbed_llama(), P4TrainerCallback(every=EVERY, finalize_on_save=True)
    run = trainer(model, tmp_path, callback, save_strategy="steps", save_steps=STOP)
    run.train()
    run.save_model(str(tmp_path / "export"))
    assert load_file(tmp_path / "export" / "model.safetensors").keys() == llama().state_dict().keys()
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(logits(plain), logits(model), rtol=ROUNDING, atol=ROUNDING)
    resumed = perturbed_llama()  # the checkpoints still hold perturbations
    again = trainer(resumed, tmp_path, P4TrainerCallback(every=EVERY), save_strategy="steps", save_steps=STOP)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STOP}"))
    assert_equal_states(model, resumed)


def test_a_checkpoint_without_the_merges_is_refused(tmp_path: Path) -> None:
    for seed, folder in enumerate(("one", "other")):
        trained(tmp_path / folder, perturbed_llama(seed), save_strategy="steps", save_steps=STOP)
    checkpoint = tmp_path / "one" / f"checkpoint-{STOP}"

    def resume(output: str, **options: Any) -> None:
        callback = P4TrainerCallback(every=EVERY, **options)
        trainer(perturbed_llama(), tmp_path / output, callback).train(resume_from_checkpoint=str(checkpoint))

    with pytest.raises(p4.CheckpointError, match=r"merges\.pt` must be of the checkpoint that training is resumed"):
        resume("other")
    with pytest.raises(p4.CheckpointError, match=r"but is not there: name the folder.*resume_from=\.\.\."):
        resume("third")
    resume("third", resume_from=checkpoint)
    (checkpoint / "merges.pt").unlink()
    with pytest.raises(p4.CheckpointError, match="but is not there"):
        resume("one")


def test_the_state_of_the_merges_holds_plain_values(tmp_path: Path) -> None:
    trained(tmp_path, save_strategy="steps", save_steps=STOP)
    state = torch.load(tmp_path / f"checkpoint-{STOP}" / "merges.pt", weights_only=True)
    assert state["scheduler"]["steps"] == state["global_step"] == STOP
    assert json.loads((tmp_path / f"checkpoint-{STOP}" / "trainer_state.json").read_text())["global_step"] == STOP


def test_it_can_train_twice(tmp_path: Path) -> None:
    model, callback = perturbed_llama(), P4TrainerCallback(every=EVERY)
    run = trainer(model, tmp_path, callback, max_steps=4)
    run.train()
    run.train()
    assert callback.scheduler is not None and callback.scheduler.steps == 4
    state = run.optimizer.state_dict()
    fresh = trainer(perturbed_llama(), tmp_path)
    fresh.create_optimizer()
    fresh.optimizer.load_state_dict(state)  # the Trainer's own order


def test_it_detaches_at_the_end(tmp_path: Path) -> None:
    model, callback = perturbed_llama(), P4TrainerCallback(every=EVERY)
    run = trainer(model, tmp_path, callback, max_steps=2)
    run.train()
    model(**{name: value[None] for name, value in examples(1)[0].items()}).loss.backward()
    run.optimizer.optimizer.step()
    assert callback.scheduler is not None and callback.scheduler.steps == 2


def test_activation_checkpointing_changes_nothing(tmp_path: Path) -> None:
    model, _ = trained(tmp_path)
    same, _ = trained(tmp_path, gradient_checkpointing=True)
    assert_equal_states(model, same)


def test_a_search_and_checkpoints_of_the_model_alone_have_no_merges(tmp_path: Path) -> None:
    _, callback = trained(tmp_path, save_strategy="steps", save_steps=STOP, save_only_model=True)
    assert (tmp_path / f"checkpoint-{STOP}" / "model.safetensors").exists()
    state = transformers.TrainerState(global_step=STOP, is_hyper_param_search=True)
    callback.on_save(transformers.TrainingArguments(str(tmp_path), use_cpu=True), state, None, model=None)
    assert not list(tmp_path.rglob("merges.pt"))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(p4.ArgumentError, match="`every` must be an integer >= 1, got 0"):
        P4TrainerCallback(every=0)
    with pytest.raises(p4.ArgumentError, match="`model` must be a module with at least one perturbed"):
        trainer(llama(), tmp_path, P4TrainerCallback()).train()
    arguments, linear = transformers.TrainingArguments(str(tmp_path), use_cpu=True), nn.Linear(2, 2)
    with pytest.raises(p4.ArgumentError, match="`finalize_on_save` must be False"):
        P4TrainerCallback(finalize_on_save=True).on_train_begin(arguments, None, None, model=linear, optimizer=None)
    arguments.deepspeed = "stage-3.json"
    with pytest.raises(p4.ArgumentError, match="`args` must be without DeepSpeed"):
        P4TrainerCallback().on_train_begin(arguments, None, None, model=linear, optimizer=None)


def test_an_optimizer_of_layers_that_step_by_themselves_is_refused(tmp_path: Path) -> None:
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    run = trainer(perturbed_llama(), tmp_path, P4TrainerCallback())
    run.optimizer = LayerWiseDummyOptimizer(optimizer_dict={})
    with pytest.raises(p4.OptimizerError, match="`optimizer` must hold the parameters of every perturbation"):
        run.train()


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [("transformers", "P4TrainerCallback", "huggingface"), ("pytorch_lightning", "MergeCallback", "lightning")],
)
def test_a_missing_package_names_its_extra(
    package: str, name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import p4torch.training as training

    monkeypatch.setitem(sys.modules, package, None)
    for module in ("callback", "huggingface"):
        monkeypatch.delitem(sys.modules, f"p4torch.training.{module}", raising=False)
    with pytest.raises(ImportError, match=rf'`{name}` needs {package}: pip install "p4torch\[{extra}\]"'):
        getattr(training, name)
