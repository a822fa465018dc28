"""What a run consists of: full trainings with table and figure, or trainings that tune learning rates."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.density.config import TUNE_SEED, Config, Job
from experiments.density.figure import draw
from experiments.density.rates import best_rates
from experiments.density.table import markdown, summarise
from experiments.tables import Row
from p4torch.runs.folder import read_json, write_json
from p4torch.runs.pool import Progress, Report
from p4torch.runs.runner import JOBS, Results, Run

#: What a run leaves in its folder.
_FILES = ("config.json", "provenance.json", "metrics.json", "tune.json", "table.md", "density.png", "density.pdf")


def work(config: Config, run: Run) -> None:
    """All jobs, and what they leave."""
    if config.kind == "tune":
        tune(config, run)
        return
    summary = summarise(config, rows_of(config.jobs(), run))
    figure = draw(config, lambda job: run.out / JOBS / job.name)
    run.leave(Results(summary, markdown(summary), {"density": figure}))


def tune(config: Config, run: Run) -> None:
    """The tuning jobs; the best learning rates go to `tune.json`."""
    rows = sorted(rows_of(config.tuning(), run), key=lambda row: (row["target"], row["model"], row["learning_rate"]))
    best = best_rates(config, rows)
    kept = ("target", "model", "learning_rate", "kl", "leakage", "skipped")
    value = {
        "steps": config.steps,
        "batch": config.batch,
        "every": config.every,
        "seed": TUNE_SEED,
        "best": best,
        "rows": [{name: row[name] for name in kept} for row in rows],
    }
    write_json(run.out / "tune.json", value)
    for target, rates in best.items():
        run.say(f"{target}: {', '.join(f'{model} {rate:g}' for model, rate in rates.items())}")
    run.say(f"Learning rates: {run.out / 'tune.json'}")


def rows_of(jobs: list[Job], run: Run) -> list[Row]:
    """Each job has a folder, with its weights, its log and `result.json`."""
    return list(run.rows(jobs, partial(_job, run.out), _said, "{}/result.json").values())


def _job(out: Path, job: Job, report: Report[Progress]) -> Row | None:
    """One job, in a process of its own."""
    from experiments.density.job import run_job  # heavy packages: seconds that the parent need not wait for

    return run_job(job, out / JOBS / job.name, report)


def _said(job: Job, row: Row) -> str:
    return (
        f"{job.title}: KL {row['kl']:.4f} nats, leakage {100 * row['leakage']:.2f} %, {row['skipped']} merges skipped"
    )


def before(out: Path, console: Console, resume: bool, config: Config) -> None:
    """What comes before a run: a demo overwrites the demo before it, and a resume without a run is said to be none."""
    if resume and not out.exists():
        console.print(f"Nothing to resume in {out}: a new run.", highlight=False, soft_wrap=True)
    if config.kind == "demo" and not resume:
        clear_demo(out, config.fields())


def clear_demo(out: Path, fields: dict[str, Any]) -> None:
    """Remove an earlier run of this kind, if the folder holds nothing else."""
    stored = out / "config.json"
    if not stored.exists() or {path.name for path in out.iterdir()} - {*_FILES, JOBS}:
        return
    if read_json(stored).get("kind") == fields["kind"]:
        for name in _FILES:
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / JOBS, ignore_errors=True)
