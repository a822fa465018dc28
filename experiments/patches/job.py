"""One job: a training, and the held-out log-likelihood along it."""

from __future__ import annotations

import math
import statistics

import torch

from experiments.patches.config import Job
from experiments.patches.data import patches
from experiments.patches.models import build
from experiments.tables import Row
from p4torch.flows import Flow
from p4torch.runs.pool import Progress, Report
from p4torch.training import Fit, measures


def trainer(job: Job) -> Fit:
    """A new flow with Adam and merges.

    The relative gradient goes through Adam, too: SGD with momentum was behind by more than 8 nats after 1,000 steps (at
    rates of 0.01 and 0.1), and without clipping it diverged.
    """
    torch.manual_seed(job.seed)
    fit = Fit(build(job.variant, job.layers), job.steps, job.learning_rate)
    if job.every:
        fit.merge(job.every, optimizer_state=job.optimizer_state, seed=job.seed)
    return fit


@torch.no_grad()
def tile_nats(flow: Flow, split: str) -> list[float]:
    """The mean log-likelihood of each tile of "validation" or "test", in nats a patch (of Qᵀx, pixels from 0 to 1)."""
    data = patches()
    points = data.held_out(split)
    flow.eval()
    log_prob = flow.log_prob(points.flatten(0, 1)).double().view(points.shape[:2])
    return [mean + data.unit for mean in log_prob.mean(-1).tolist()]


def run_job(job: Job, report: Report[Progress] = lambda progress: False) -> Row | None:
    """The job's row, or None if the report asked to stop. The clock runs in steps and merges alone.

    The curve holds [step, seconds, held-out nats]. "best" is where the validation set is at its best, so nothing is
    chosen by what is held out. A training that diverges ends there.
    """
    fit, data = trainer(job), patches()
    curve, step_times = list[list[float]](), list[float]()
    best, best_validation, best_tiles = 0, -math.inf, list[float]()
    while fit.done < job.steps:
        if report(Progress(fit.done, f"held out {curve[-1][2]:.2f} nats" if curve else "")):
            return None
        count = min(job.interval, job.steps - fit.done)
        batches = data.batches(job.seed, fit.done // job.interval, count, job.batch)
        before = fit.seconds
        fit.train(batches)
        step_times.append(1000 * (fit.seconds - before) / count)
        tiles, validation = tile_nats(fit.flow, "test"), statistics.fmean(tile_nats(fit.flow, "validation"))
        curve.append([fit.done, fit.seconds, statistics.fmean(tiles)])
        if validation > best_validation:
            best, best_validation, best_tiles = fit.done, validation, tiles
        if not math.isfinite(validation):
            break
    return {
        **job.fields(),
        "parameters": measures.parameter_count(fit.flow),
        "validation": best_validation,
        "best_step": best,
        "held_out": statistics.fmean(best_tiles) if best_tiles else -math.inf,
        "tiles": best_tiles,
        "diverged": fit.done < job.steps or not best_tiles,
        "curve": curve,
        "step_milliseconds": statistics.median(step_times),
        "logabsdet_error": measures.logabsdet_error(fit.flow),
        "merged": fit.merged,
        "skipped": fit.skipped,
    }
