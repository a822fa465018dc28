"""One job: a training, and the held-out log-likelihood along it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from p4torch import MergeScheduler
from p4torch.experiments.patches.config import Job
from p4torch.experiments.patches.data import patches
from p4torch.experiments.patches.models import build
from p4torch.flows import Flow
from p4torch.merging.optimizer_state import OptimizerState
from p4torch.training import ChunkedFit, FlatAdam, measures

#: Where the norm of the gradient is clipped.
CLIP = 1.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Trainer:
    """A flow and what trains it."""

    flow: Flow
    fit: ChunkedFit
    optimizer: FlatAdam
    scheduler: MergeScheduler | None

    def train(self, batches: Tensor) -> None:
        """A step for each of the batches `(c, batch, 63)`, with its merges."""
        self.flow.train()
        for batch in batches.unbind(0):
            self.fit.step(batch, self.optimizer)


def trainer(job: Job) -> Trainer:
    """A new flow with Adam: linear warm-up, then a cosine to 0, gradients clipped.

    The relative gradient goes through Adam, too: SGD with momentum was behind by more than 8 nats after 1,000 steps (at
    rates of 0.01 and 0.1), and without clipping it diverged.
    """
    torch.manual_seed(job.seed)
    flow = build(job.variant, job.layers)
    fit = ChunkedFit(flow, job.steps, job.learning_rate, clip=CLIP)
    optimizer = fit.configure_optimizers()
    if job.every == 0:
        return Trainer(flow, fit, optimizer, None)
    state = cast(OptimizerState, job.optimizer_state)
    scheduler = MergeScheduler(flow, optimizer, job.every, optimizer_state=state, seed=job.seed)
    scheduler.attach()
    return Trainer(flow, fit, optimizer, scheduler)


@torch.no_grad()
def tile_nats(flow: Flow, split: str) -> list[float]:
    """The mean log-likelihood of each tile of "validation" or "test", in nats a patch (of Qᵀx, pixels from 0 to 1)."""
    data = patches()
    points = data.held_out(split)
    flow.eval()
    log_prob = flow.log_prob(points.flatten(0, 1)).double().view(points.shape[:2])
    return [mean + data.unit for mean in log_prob.mean(-1).tolist()]


def run_job(job: Job, stopped: Callable[[], bool] = lambda: False) -> Row | None:
    """The job's row, or None if it was stopped. The clock runs in steps and merges alone.

    The curve holds [step, seconds, held-out nats]. "best" is where the validation set is at its best, so nothing is
    chosen by what is held out. A training that diverges ends there.
    """
    torch.set_num_threads(1)
    run, data = trainer(job), patches()
    curve, step_times = list[list[float]](), list[float]()
    best, best_validation, best_tiles, done, seconds = 0, -math.inf, list[float](), 0, 0.0
    while done < job.steps:
        if stopped():
            return None
        count = min(job.interval, job.steps - done)
        batches = data.batches(job.seed, done // job.interval, count, job.batch)
        started = time.perf_counter()
        run.train(batches)
        spent = time.perf_counter() - started
        done, seconds = done + count, seconds + spent
        step_times.append(1000 * spent / count)
        tiles, validation = tile_nats(run.flow, "test"), statistics.fmean(tile_nats(run.flow, "validation"))
        curve.append([done, seconds, statistics.fmean(tiles)])
        if validation > best_validation:
            best, best_validation, best_tiles = done, validation, tiles
        if not math.isfinite(validation):
            break
    scheduler = run.scheduler
    return {
        **job.fields(),
        "parameters": measures.parameter_count(run.flow),
        "validation": best_validation,
        "best_step": best,
        "held_out": statistics.fmean(best_tiles) if best_tiles else -math.inf,
        "tiles": best_tiles,
        "diverged": done < job.steps or not best_tiles,
        "curve": curve,
        "step_milliseconds": statistics.median(step_times),
        "logabsdet_error": measures.logabsdet_error(run.flow),
        "merged": scheduler.merged if scheduler else 0,
        "skipped": scheduler.skipped if scheduler else 0,
    }
