"""One job: train a model, resume it exactly, measure it."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments import metrics
from experiments.density.config import Job
from experiments.density.data import TEST_POINTS, TrainingChunks, held_out
from experiments.density.models import build
from experiments.targets import get_target
from p4torch import finalize
from p4torch.errors import CheckpointError
from p4torch.flows import Flow
from p4torch.parametrize.sites import counter_based_generator, sites
from p4torch.runs import folder
from p4torch.runs.checkpoint import load_checkpoint, save_checkpoint, write_whole
from p4torch.runs.pool import Progress, Report
from p4torch.runs.provenance import provenance
from p4torch.training import Fit, measures

#: Steps between two lines of metrics.jsonl, which is also how often a checkpoint is written.
LOG_EVERY = 500


def run_job(job: Job, path: Path, report: Report[Progress]) -> dict[str, Any] | None:
    """Train (from the checkpoint in `path`, if there is one), measure, and write what a run folder holds.

    Returns:
        the job's row; None if `report` asked to stop: `path` then has a checkpoint.
    """
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
    return row


class TrainingRun:
    """The training of one job, which logs, writes checkpoints and stops when asked to."""

    def __init__(self, job: Job, path: Path, report: Report[Progress]) -> None:
        self.job, self.path, self.report = job, path, report
        state = self._read_checkpoint()
        torch.manual_seed(job.seed)  # of the initial weights; nothing else uses the global generator
        self.flow: Flow = build(job.model)
        self._fit = Fit(self.flow, job.steps, job.learning_rate)
        self.perturbed = any(sites(self.flow))
        if self.perturbed:
            named = nn.ModuleDict({"flow": self.flow})  # directions depend on names: those of published runs
            self._fit.merge(job.every, named, seed=job.seed)
        self.seconds, self.residual = 0.0, 0.0
        self._since_log: list[Tensor] = []
        self._log_set = held_out(job.target, "log")
        if state is not None:
            self._restore(state)
        folder.keep_lines(path / "metrics.jsonl", self.done)

    @property
    def done(self) -> int:
        """Steps made."""
        return self._fit.done

    def fit(self) -> None:
        """Train to the end, or until the report asks to stop."""
        job, started = self.job, time.perf_counter() - self.seconds
        for chunk in TrainingChunks(job.target, job.seed, job.batch, job.steps, self.done):
            loss = self._fit.train(chunk, self._probe if self.perturbed else None)
            self._since_log.append(loss)
            stop = self.report(Progress(self.done, f"loss {float(loss):.3f}, {self._fit.skipped} merges skipped"))
            log = self.done % LOG_EVERY == 0 or self.done >= job.steps
            self.seconds = time.perf_counter() - started
            if log:
                self._log()
            if log or stop:
                self._write_checkpoint()
            if stop:
                return

    def _probe(self) -> None:
        self.residual = max(self.residual, measures.inverse_residual(self.flow))

    def _log(self) -> None:
        row = {
            "step": self.done,
            "loss": float(torch.stack(self._since_log).mean()),
            "kl": metrics.kl_divergence(self.flow, *self._log_set),
            "inverse_residual": measures.inverse_residual(self.flow),
            "merged": self._fit.merged,
            "skipped": self._fit.skipped,
            "seconds": self.seconds,
        }
        self.residual = max(self.residual, row["inverse_residual"])
        self._since_log.clear()
        folder.append_line(self.path / "metrics.jsonl", row)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    def _write_checkpoint(self) -> None:
        state = {
            "job": self.job.fields(),
            "step": self.done,
            "flow": self.flow.state_dict(),
            "optimizer": self._fit.optimizer.state_dict(),
            "merges": self._fit.merges.state_dict() if self._fit.merges else {},
            "seconds": self.seconds,
            "step_seconds": self._fit.seconds,
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
        if self._fit.merges:
            self._fit.merges.load_state_dict(state["merges"])
        self._fit.optimizer.load_state_dict(state["optimizer"])
        self._fit.done, self._fit.seconds = state["step"], state["step_seconds"]
        self.seconds, self.residual = state["seconds"], state["residual"]

    # --- results ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """The job's row. Densities and samples are evaluated in float64 for both models, round trips as trained."""
        job, target = self.job, get_target(self.job.target)
        points, log_density = held_out(job.target, job.split)
        exact = copy.deepcopy(self.flow).double()
        samples = exact.sample(TEST_POINTS, generator=counter_based_generator(job.seed, f"samples/{job.target}", 0))
        return {
            **job.fields(),
            "parameters": measures.parameter_count(self.flow),
            "kl": metrics.kl_divergence(exact, points.double(), log_density),
            "leakage": metrics.leakage(target, target.log_density(samples)),
            "data_leakage": metrics.leakage(target, log_density),
            "steps_per_second": job.steps / self._fit.seconds,
            "inverse_residual": max(self.residual, measures.inverse_residual(self.flow)),
            "logabsdet_error": measures.logabsdet_error(self.flow),
            "round_trip": metrics.round_trip(self.flow, samples[:10_000].float()),
            "merged": self._fit.merged,
            "skipped": self._fit.skipped,
        }
