"""The run folder: which jobs are left, their rows together, table and figure."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from p4torch.display import display
from p4torch.errors import CheckpointError
from p4torch.experiments.density.config import LEARNING_RATES, OWN_RATES, TUNE_SEED, Config, Job, Rates, Report
from p4torch.experiments.density.figure import draw
from p4torch.experiments.density.rates import best_rates
from p4torch.experiments.density.table import markdown, summarise
from p4torch.jobs import Pool
from p4torch.training import provenance
from p4torch.training.checkpoint import write_whole
from p4torch.training.folder import differences, read_json, write_json

#: What a run leaves in its folder.
_FILES = ("config.json", "provenance.json", "metrics.json", "tune.json", "table.md", "density.png", "density.pdf")
_JOBS = "jobs"


@dataclass(frozen=True)
class Results:
    """What a full run made."""

    rows: list[dict[str, Any]]
    table: str
    figure: Path


def run(config: Config, out: Path, *, workers: int, console: Console) -> Results:
    """All jobs that are not done yet, then `metrics.json`, `table.md` and the figure."""
    jobs = run_jobs(config.jobs(), out, workers, console, seeds=list(config.seeds))
    rows = summarise(config, jobs)
    write_json(out / "metrics.json", rows)
    text = markdown(rows)
    write_whole(out / "table.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    figure = draw(config, lambda job: out / _JOBS / job.name, out / "density")
    return Results(rows, text, figure)


def tune(config: Config, out: Path, *, workers: int, console: Console) -> Rates:
    """Each model on each target with each learning rate of the short list; the best go to `tune.json`.

    One seed, a shorter run, and a validation set that no full run touches.
    """
    jobs = [
        Job(target, model, TUNE_SEED, config.steps, config.batch, config.every, rate, "validation")
        for target in config.targets
        for model in config.models
        for rate in OWN_RATES.get(model, LEARNING_RATES)
    ]
    rows = run_jobs(jobs, out, workers, console, seeds=[TUNE_SEED])
    rows.sort(key=lambda row: (row["target"], row["model"], row["learning_rate"]))
    best = best_rates(config, rows)
    kept = ("target", "model", "learning_rate", "kl", "leakage", "skipped")
    write_json(
        out / "tune.json",
        {
            "steps": config.steps,
            "batch": config.batch,
            "every": config.every,
            "seed": TUNE_SEED,
            "best": best,
            "rows": [{name: row[name] for name in kept} for row in rows],
        },
    )
    return best


def run_jobs(jobs: list[Job], out: Path, workers: int, console: Console, seeds: list[int]) -> list[dict[str, Any]]:
    """The rows of all jobs, those of finished ones read from their folders."""
    started = time.monotonic()
    earlier = [read_json(out / "provenance.json")] if (out / "provenance.json").exists() else []
    record = {**provenance(seeds=seeds), "threads": 1, "workers": workers, "wall_seconds": None}
    if earlier:
        record["earlier"] = [*earlier[0].pop("earlier", []), earlier[0]]
    write_json(out / "provenance.json", record)
    rows = [row for job in jobs if (row := finished(job, out)) is not None]
    left = [job for job in jobs if not (out / _JOBS / job.name / "result.json").exists()]
    try:
        with display(left, console, _result) as shown:
            rows += Pool(min(workers, max(1, len(left))), partial(_job, out), shown).run(left)
    finally:
        write_json(out / "provenance.json", {**record, "wall_seconds": time.monotonic() - started})
    return rows


def _job(out: Path, job: Job, report: Report) -> dict[str, Any] | None:
    """One job, in a process of its own."""
    from p4torch.experiments.density.job import run_job  # Lightning: seconds that the parent need not wait for

    return run_job(job, out / _JOBS / job.name, report)


def _result(job: Job, row: dict[str, Any]) -> str:
    return (
        f"{job.title}: KL {row['kl']:.4f} nats, leakage {100 * row['leakage']:.2f} %, {row['skipped']} merges skipped"
    )


def finished(job: Job, out: Path) -> dict[str, Any] | None:
    """The row of a job that is done. Raises CheckpointError if its folder belongs to another job."""
    path = out / _JOBS / job.name / "result.json"
    if not path.exists():
        return None
    row: dict[str, Any] = read_json(path)
    wrong = differences(job.fields(), {name: row.get(name) for name in job.fields()})
    if wrong:
        raise CheckpointError(f"`{path}` must be of the job that is resumed ({wrong})")
    return row


def clear_demo(out: Path, fields: dict[str, Any]) -> None:
    """Remove an earlier run of this kind, if the folder holds nothing else."""
    found = out / "config.json"
    if not found.exists() or {path.name for path in out.iterdir()} - {*_FILES, _JOBS}:
        return
    if read_json(found).get("kind") == fields["kind"]:
        clear(out)


def clear(out: Path) -> None:
    """Remove what a run left in its folder, and nothing else."""
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / _JOBS, ignore_errors=True)
