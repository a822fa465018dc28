"""What a run consists of: the clock, tuning, full trainings, and what is written from them."""

from __future__ import annotations

import math

from experiments.patches.clock import step_milliseconds
from experiments.patches.config import Config, Job
from experiments.patches.data import FEATURES, patches
from experiments.patches.figure import draw
from experiments.patches.gaussian import gaussian_nats
from experiments.patches.job import run_job
from experiments.patches.table import markdown, summarise, variant_of
from experiments.tables import Row, best_rate, by_rate, number
from p4torch.runs.folder import read_json, write_json
from p4torch.runs.runner import Results, Run

_FIELDS = ("model", "rank", "block", "every", "directions", "learning_rate")
_TUNED = ("validation", "diverged", "skipped", "merged")


def work(config: Config, run: Run) -> None:
    """All that is not done yet, and what it leaves."""
    clock = timed(config, run)
    tuned = rows_of(config.tuning(), run)
    rows = rows_of(config.jobs(best_rates(config, tuned)), run)
    gaussian, data, summary = gaussian_nats("test"), patches(), summarise(config, rows, clock)
    metrics = {
        "data": {
            "features": FEATURES,
            "scale": data.scale,
            "training_patches": len(data.training),
            "held_out_patches": data.held_out("test").shape[:2].numel(),
        },
        "gaussian": gaussian,
        "rows": summary,
        "runs": rows,
        "tuning": [{name: row[name] for name in (*_FIELDS, *_TUNED)} for row in tuned],
    }
    run.leave(Results(metrics, markdown(summary, gaussian), {"patches": draw(summary, gaussian)}))


def rows_of(jobs: list[Job], run: Run) -> list[Row]:
    """Of tuning or of the full trainings."""
    return list(run.rows(jobs, run_job, _said).values())


def timed(config: Config, run: Run) -> dict[str, float]:
    """Milliseconds of a step by variant, from `clock.json` if they have been measured."""
    path = run.out / "clock.json"
    if not path.exists():
        run.say("Measuring steps, all models in turn ...")
        write_json(path, step_milliseconds(config))
    clock: dict[str, float] = read_json(path)
    return clock


def best_rates(config: Config, rows: list[Row]) -> dict[str, float]:
    """The learning rate with the highest validation log-likelihood, by name of variant."""
    if not rows:
        return {variant.name: config.learning_rates[0] for variant in config.variants()}
    return {
        variant.name: best_rate(by_rate(row for row in rows if variant_of(row) == variant), _worth)
        for variant in config.variants()
    }


def _worth(rows: list[Row]) -> float:
    (row,) = rows
    return math.inf if row["diverged"] else -number(row["validation"], -math.inf)


def _said(job: Job, row: Row) -> str:
    if row["diverged"]:
        return f"{job.title}: diverged"
    return f"{job.title}: held out {row['held_out']:.2f} nats, {row['step_milliseconds']:.1f} ms a step"
