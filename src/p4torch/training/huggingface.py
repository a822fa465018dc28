"""Merges inside the Trainer of Hugging Face's transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.merging.optimizer_state import unwrapped
from p4torch.merging.scheduler import MergeScheduler
from p4torch.parametrize.pretrained import guard_saves, pretrained_models, unguard_saves
from p4torch.parametrize.sharding import is_sharded
from p4torch.parametrize.sites import Site
from p4torch.parametrize.targets import chain_of
from p4torch.runs.checkpoint import load_checkpoint, save_checkpoint
from p4torch.runs.digest import digest
from p4torch.training.attached import AttachedScheduler
from p4torch.training.undecayed import Undecayed

#: In the folder of a checkpoint.
FILE = "merges.pt"


class P4TrainerCallback(AttachedScheduler, TrainerCallback):
    """A `MergeScheduler` for transformers' `Trainer`: merges every N steps of its optimizer.

    The scheduler is attached to the optimizer itself and counts the steps that it makes, whatever the
    `gradient_accumulation_steps` are. B goes into the group without weight decay of the Trainer's default optimizer;
    one of your own that decays B is refused. Each checkpoint gets a file `merges.pt` with the scheduler's state, and a
    run that is resumed from it goes on exactly where it was. `from_pretrained` reads the model of any checkpoint:
    effective weights stand in it beside what the perturbations need.

    Args:
        every: N, in optimizer steps; None for the interval of each perturbation.
        finalize_on_save: what `trainer.save_model()` writes after training is the plain model alone.
        resume_from: the folder of the checkpoint that training is resumed from. By default that of
            `TrainingArguments`, or `checkpoint-<step>` in its `output_dir`.
        options: of `p4torch.MergeScheduler`.

    Raises, when training begins:
        ArgumentError: no perturbed tensor in the model, or DeepSpeed, or nothing that could be finalized.
        OptimizerError: the optimizer decays B, or lacks parts of it.
        CheckpointError: training is resumed, and there is no `merges.pt`, or one of another model.

    Example:
        >>> from p4torch.training import P4TrainerCallback
        >>> trainer = Trainer(model, arguments, callbacks=[P4TrainerCallback(every=50)])  # doctest: +SKIP
    """

    def __init__(
        self,
        every: int | None = None,
        *,
        finalize_on_save: bool = False,
        resume_from: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(every, options)
        self.finalize_on_save, self.resume_from = finalize_on_save, resume_from
        self._undecayed: Undecayed | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        model: nn.Module = parts["model"]
        if args.deepspeed:
            raise ArgumentError.of("args", "without DeepSpeed, which trains copies of the parameters", "deepspeed")
        if self.finalize_on_save and (_adapters_alone(model) or not any(pretrained_models(model))):
            expected = "False for a model whose weights `save_model` does not write through `save_pretrained`"
            raise ArgumentError.of("finalize_on_save", expected, f"True for {type(model).__name__}")
        optimizer = unwrapped(parts["optimizer"])[-1]
        scheduler = self._make(model, optimizer)
        if self._undecayed is None or self._undecayed.optimizer is not optimizer:
            trainable = [value for site in scheduler.sites for value in site.trainable().values()]
            self._undecayed = Undecayed(optimizer, trainable)
        if state.global_step:
            self._resume(scheduler, args, state)
        self._save_finalized(model, False)
        self._attach()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        self._detach()
        if self.finalize_on_save:
            self._save_finalized(parts["model"], True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Write the scheduler's state into the checkpoint that the Trainer has just written."""
        if self.scheduler is None or args.save_only_model or state.is_hyper_param_search or not args.should_save:
            return
        sites = self.scheduler.sites
        whole = {site.name: chain_of(site.module, site.tensor_name).state_dict() for site in sites}
        content = {
            "global_step": state.global_step,
            "scheduler": self.scheduler.state_dict(),
            "digest": _digest(sites),
            "sites": whole if _adapters_alone(parts["model"]) else {},
        }
        save_checkpoint(_folder(args, state) / FILE, content)

    def _resume(self, scheduler: MergeScheduler, args: TrainingArguments, state: TrainerState) -> None:
        given = self.resume_from or args.resume_from_checkpoint
        folder = Path(given) if isinstance(given, (str, Path)) else _folder(args, state)
        if not (folder / FILE).is_file():
            raise CheckpointError(
                f"`{folder / FILE}` must hold the state of the merges at step {state.global_step}, but is not there: "
                "name the folder of the checkpoint, `P4TrainerCallback(resume_from=...)`, or begin anew"
            )
        saved = load_checkpoint(folder / FILE)
        step, own = saved.get("global_step"), saved.get("sites") or saved.get("digest") == _digest(scheduler.sites)
        if step != state.global_step or not own:
            raise CheckpointError(
                f"`{folder / FILE}` must be of the checkpoint that training is resumed from, at step "
                f"{state.global_step}, got one of step {step}, or of another run: name the folder, "
                "`P4TrainerCallback(resume_from=...)`"
            )
        for site in scheduler.sites:
            if site.name in saved["sites"]:
                chain_of(site.module, site.tensor_name).load_state_dict(saved["sites"][site.name])
        scheduler.load_state_dict(saved["scheduler"])

    def _save_finalized(self, model: nn.Module, finalized: bool) -> None:
        for pretrained in pretrained_models(model):
            unguard_saves(pretrained)
        guard_saves(model, perturbed=not finalized)


def _adapters_alone(model: nn.Module) -> bool:
    """Whether checkpoints of the model hold PEFT's adapters only."""
    return getattr(model, "peft_config", None) is not None


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _digest(sites: list[Site]) -> str:
    """Of all of B, as far as it is not in shards."""
    named = ((f"{site.name}.{name}", value) for site in sites for name, value in site.perturbation.own_parameters())
    return digest({name: value for name, value in named if not is_sharded(value)})
