"""One job: train a model under Lightning, resume it exactly, measure it."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from p4torch import finalize
from p4torch.errors import CheckpointError
from p4torch.experiments import metrics
from p4torch.experiments.density.config import Job, Progress, Report
from p4torch.experiments.density.data import TEST_POINTS, TrainingChunks, held_out
from p4torch.experiments.density.models import build
from p4torch.experiments.targets import get_target
from p4torch.flows import Flow
from p4torch.parametrize.sites import direction_generator, sites
from p4torch.training import ChunkedFit, MergeCallback, folder, load_checkpoint, measures, provenance, save_checkpoint
from p4torch.training.checkpoint import write_whole
from p4torch.training.chunks import interruptible, quiet_trainer

#: Steps between two lines of metrics.jsonl, which is also how often a checkpoint is written.
LOG_EVERY = 500


def run_job(job: Job, path: Path, report: Report) -> dict[str, Any] | None:
    """Train (from the checkpoint in `path`, if there is one), measure, and write what a run folder holds.

    Returns:
        the job's row, also in `result.json`; None if `report` asked to stop: `path` then has a checkpoint.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (".*does not have many workers", ".*treespec"):  # Lightning's, about matters of its own
        warnings.filterwarnings("ignore", message)
    path.mkdir(parents=True, exist_ok=True)
    record = provenance(seed=job.seed)
    run = TrainingRun(job, path, report)
    folder.write_json(path / "config.json", job.fields())
    run.fit()
    if run.done < job.steps:
        return None
    row = run.measure()
    weights = finalize(copy.deepcopy(run.flow)).state_dict()
    write_whole(path / "weights.safetensors", lambda temporary: save_file(weights, temporary))
    folder.write_json(path / "provenance.json", {**record, "wall_seconds": run.seconds})
    folder.write_json(path / "result.json", row)
    return row


class TrainingRun(pl.Callback):
    """The training of one job: Lightning's callback that logs, writes checkpoints and stops when asked to."""

    def __init__(self, job: Job, path: Path, report: Report) -> None:
        self.job, self.path, self.report = job, path, report
        state = self._read_checkpoint()
        torch.manual_seed(job.seed)  # of the initial weights; nothing else uses the global generator
        self.flow: Flow = build(job.model)
        self.merges = MergeCallback(every=job.every, seed=job.seed) if any(sites(self.flow)) else None
        self.done, self.seconds, self.residual = 0, 0.0, 0.0
        self._optimizer_state: dict[str, Any] | None = None
        self._since_log: list[Tensor] = []
        self._earlier_step_seconds = 0.0
        self._log_set = held_out(job.target, "log")
        if state is not None:
            self._restore(state)
        folder.keep_lines(path / "metrics.jsonl", self.done)
        self.fit_module = ChunkedFit(
            self.flow, job.steps, job.learning_rate, done=self.done, probe=self._probe if self.merges else None
        )

    def fit(self) -> None:
        """Train to the end, or until the report asks to stop."""
        if self.done >= self.job.steps:
            return
        chunks = TrainingChunks(self.job.target, self.job.seed, self.job.batch, self.job.steps, self.done)
        trainer = quiet_trainer(*([self.merges] if self.merges else []), self)
        with interruptible():
            trainer.fit(self.fit_module, DataLoader(chunks, batch_size=None))

    # --- Lightning's hooks ----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._optimizer_state is not None:
            trainer.optimizers[0].load_state_dict(self._optimizer_state)
            self._optimizer_state = None
        self._started = time.perf_counter() - self.seconds

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.done = self.fit_module.done
        loss: Tensor = outputs["loss"]
        self._since_log.append(loss)
        stop = self.report(Progress(self.done, float(loss), self.merges.skipped if self.merges else 0))
        log = self.done % LOG_EVERY == 0 or self.done >= self.job.steps
        self.seconds = time.perf_counter() - self._started
        if log:
            self._log()
        if log or stop:
            self._write_checkpoint(trainer.optimizers[0])
        if stop:
            trainer.should_stop = True

    def _probe(self) -> None:
        self.residual = max(self.residual, measures.inverse_residual(self.flow))

    def _log(self) -> None:
        row = {
            "step": self.done,
            "loss": float(torch.stack(self._since_log).mean()),
            "kl": metrics.kl_divergence(self.flow, *self._log_set),
            "inverse_residual": measures.inverse_residual(self.flow),
            "merged": self.merges.merged if self.merges else 0,
            "skipped": self.merges.skipped if self.merges else 0,
            "seconds": self.seconds,
        }
        self.residual = max(self.residual, row["inverse_residual"])
        self._since_log.clear()
        folder.append_line(self.path / "metrics.jsonl", row)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    def _write_checkpoint(self, optimizer: torch.optim.Optimizer) -> None:
        state = {
            "job": self.job.fields(),
            "step": self.done,
            "flow": self.flow.state_dict(),
            "optimizer": optimizer.state_dict(),
            "merges": self.merges.state_dict() if self.merges else {},
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
            "residual": self.residual,
        }
        save_checkpoint(self._checkpoint, state)

    def _read_checkpoint(self) -> dict[str, Any] | None:
        if not self._checkpoint.exists():
            return None
        state = load_checkpoint(self._checkpoint)
        wrong = folder.differences(self.job.fields(), state.get("job", {}))
        if wrong:
            raise CheckpointError(f"`{self._checkpoint}` must be of the job that is resumed ({wrong})")
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        self.flow.load_state_dict(state["flow"])
        self._optimizer_state = state["optimizer"]
        if self.merges:
            self.merges.load_state_dict(state["merges"])
        self.done, self.seconds, self.residual = state["step"], state["seconds"], state["residual"]
        self._earlier_step_seconds = state["step_seconds"]

    @property
    def step_seconds(self) -> float:
        """Time in steps alone, without logs and checkpoints."""
        return self._earlier_step_seconds + self.fit_module.seconds

    # --- results ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """The job's row. Densities and samples are evaluated in float64 for both models, round trips as trained."""
        job, target = self.job, get_target(self.job.target)
        points, log_density = held_out(job.target, job.split)
        exact = copy.deepcopy(self.flow).double()
        samples = exact.sample(TEST_POINTS, direction_generator(job.seed, f"samples/{job.target}", 0))
        return {
            **job.fields(),
            "parameters": measures.parameter_count(self.flow),
            "kl": metrics.kl_divergence(exact, points.double(), log_density),
            "leakage": metrics.leakage(target, target.log_density(samples)),
            "data_leakage": metrics.leakage(target, log_density),
            "steps_per_second": job.steps / self.step_seconds,
            "inverse_residual": max(self.residual, measures.inverse_residual(self.flow)),
            "logabsdet_error": measures.logabsdet_error(self.flow),
            "round_trip": metrics.round_trip(self.flow, samples[:10_000].float()),
            "merged": self.merges.merged if self.merges else 0,
            "skipped": self.merges.skipped if self.merges else 0,
        }
