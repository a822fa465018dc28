"""The run folder: the clock, tuning, full trainings, and what is written from them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from p4torch.errors import CheckpointError
from p4torch.experiments.patches.clock import step_milliseconds
from p4torch.experiments.patches.config import Config, Job
from p4torch.experiments.patches.data import FEATURES, patches
from p4torch.experiments.patches.figure import draw
from p4torch.experiments.patches.gaussian import gaussian_nats
from p4torch.experiments.patches.job import Row
from p4torch.experiments.patches.progress import Steps
from p4torch.experiments.patches.table import markdown, summarise
from p4torch.experiments.patches.workers import rows_of
from p4torch.training import provenance
from p4torch.training.checkpoint import write_whole
from p4torch.training.folder import differences, read_json, write_json


@dataclass(frozen=True)
class Results:
    """What a run made."""

    rows: list[Row]
    table: str
    figure: Path


def run(config: Config, out: Path, *, workers: int, console: Console) -> Results:
    """All that is not done yet, then `metrics.json`, `table.md` and the figure."""
    started = time.monotonic()
    earlier = read_json(out / "provenance.json") if (out / "provenance.json").exists() else None
    record = {**provenance(seeds=list(config.seeds)), "threads": 1, "workers": workers, "wall_seconds": None}
    record["versions"]["scikit-learn"] = _sklearn_version()
    if earlier is not None:
        record["earlier"] = [*earlier.pop("earlier", []), earlier]
    write_json(out / "provenance.json", record)
    try:
        clock = timed(config, out, console)
        tuning = config.tuning()
        full_steps = len(config.seeds) * len(config.variants()) * config.steps
        total = sum(job.steps for job in tuning) + full_steps
        with Steps(console, total) as shown:
            tuned = run_jobs(tuning, out, workers, shown)
            rows = run_jobs(config.jobs(best_rates(config, tuned)), out, workers, shown)
    finally:
        write_json(out / "provenance.json", {**record, "wall_seconds": time.monotonic() - started})
    return _written(config, out, rows, tuned, clock)


def _written(config: Config, out: Path, rows: list[Row], tuned: list[Row], clock: dict[str, float]) -> Results:
    gaussian, data = gaussian_nats("test"), patches()
    summary = summarise(config, rows, clock)
    value = {
        "data": {
            "features": FEATURES,
            "scale": data.scale,
            "training_patches": len(data.training),
            "held_out_patches": data.held_out("test").shape[:2].numel(),
        },
        "gaussian": gaussian,
        "rows": summary,
        "runs": rows,
        "tuning": [
            {name: row[name] for name in ("model", "rank", "block", "every", "directions", *_TUNED)} for row in tuned
        ],
    }
    write_json(out / "metrics.json", value)
    text = markdown(summary, gaussian)
    write_whole(out / "table.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return Results(summary, text, draw(summary, gaussian, out / "patches"))


_TUNED = ("learning_rate", "validation", "diverged", "skipped", "merged")


def timed(config: Config, out: Path, console: Console) -> dict[str, float]:
    """Milliseconds of a step by variant, from `clock.json` if they have been measured."""
    path = out / "clock.json"
    if not path.exists():
        console.print("Measuring steps, all models in turn ...", highlight=False)
        write_json(path, step_milliseconds(config))
    clock: dict[str, float] = read_json(path)
    return clock


def run_jobs(jobs: list[Job], out: Path, workers: int, shown: Steps) -> list[Row]:
    """The rows of all jobs in their order, those of finished ones read from their files."""
    folder = out / "jobs"
    folder.mkdir(exist_ok=True)
    rows = {job: row for job in jobs if (row := finished(job, folder)) is not None}
    shown.skip(rows)
    left = [job for job in jobs if job not in rows]
    for job, row in rows_of(left, min(workers, max(1, len(left)))):
        write_json(folder / f"{job.name}.json", row)
        rows[job] = row
        shown.finished(job, row)
    return [rows[job] for job in jobs]


def finished(job: Job, folder: Path) -> dict[str, Any] | None:
    """The row of a job that is done. Raises CheckpointError if its file belongs to another job."""
    path = folder / f"{job.name}.json"
    if not path.exists():
        return None
    row: dict[str, Any] = read_json(path)
    wrong = differences(job.fields(), {name: row.get(name) for name in job.fields()})
    if wrong:
        raise CheckpointError(f"`{path}` must be of the job that is resumed ({wrong})")
    return row


def best_rates(config: Config, rows: list[Row]) -> dict[str, float]:
    """The learning rate with the highest validation log-likelihood, by name of variant."""
    if not rows:
        return {variant.name: config.learning_rates[0] for variant in config.variants()}
    best: dict[str, float] = {}
    for variant in config.variants():
        tried = [row for row in rows if Job(**{name: row[name] for name in _FIELDS}).variant == variant]
        best[variant.name] = max(tried, key=_worth)["learning_rate"]
    return best


_FIELDS = tuple(Job.__dataclass_fields__)


def _worth(row: Row) -> float:
    value = row["validation"]
    return -math.inf if value is None or row["diverged"] else float(value)


def _sklearn_version() -> str:
    from importlib.metadata import version

    return version("scikit-learn")
