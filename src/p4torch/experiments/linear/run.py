"""The run folder: which jobs are left, their rows together, tables and figures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from p4torch.errors import CheckpointError
from p4torch.experiments.linear.config import Job
from p4torch.experiments.linear.cost import BLOCKS, CAPPED_BLOCKS, measure
from p4torch.experiments.linear.figure import draw_companion, draw_gap
from p4torch.experiments.linear.parallel import Lines, rows_of
from p4torch.experiments.linear.suites import Config
from p4torch.experiments.linear.table import claims, markdown, summarise
from p4torch.training import provenance
from p4torch.training.checkpoint import write_whole
from p4torch.training.folder import differences, prepare, read_json, write_compact, write_json

Row = dict[str, Any]

_JOBS = "jobs"
#: Suites whose loss curves are kept beside the rows.
_CURVES = ("companion", "inverse")


@dataclass(frozen=True)
class Results:
    """What a run made."""

    table: str
    figures: list[Path]


def run(config: Config, out: Path, *, workers: int, resume: bool, console: Console) -> Results:
    """All jobs that are not done yet, then everything that a run folder holds."""
    prepare(out, config.fields(), resume=resume)
    (out / _JOBS).mkdir(exist_ok=True)
    before, started = _earlier(out), time.monotonic()
    record = {**provenance(seeds=list(config.seeds)), "threads": 1, "workers": workers, **before}
    try:
        cost = measure_cost(config, out, console)
        rows = train(config.jobs(), out, workers, console)
    finally:
        write_json(out / "provenance.json", {**record, "wall_seconds": time.monotonic() - started})
    return conclude(config, out, rows, cost)


def train(jobs: list[Job], out: Path, workers: int, console: Console) -> list[Row]:
    """The rows of all jobs; those of finished ones come from their files."""
    found = {job: row for job in jobs if (row := finished(job, out)) is not None}
    left = [job for job in jobs if job not in found]
    if left:
        if found:
            console.print(f"{len(found)} of {len(jobs)} jobs are done already.", highlight=False)
        shown = Lines(console, len(left))
        longest_first = sorted(left, key=lambda job: -job.steps)
        for job, row in rows_of(longest_first, min(workers, len(left))):
            write_compact(out / _JOBS / f"{job.name}.json", row)
            found[job] = row
            shown.done(job, row)
    return [found[job] for job in jobs]


def finished(job: Job, out: Path) -> Row | None:
    """The row of a job that is done. Raises CheckpointError if the file belongs to another job."""
    path = out / _JOBS / f"{job.name}.json"
    if not path.exists():
        return None
    row: Row = read_json(path)
    wrong = differences(job.fields(), {name: row.get(name) for name in job.fields()})
    if wrong:
        raise CheckpointError(f"`{path}` must be of the job that is resumed ({wrong})")
    return row


def measure_cost(config: Config, out: Path, console: Console) -> list[Row]:
    """The rows of "cost", in this process and before any other is started: nothing of ours runs beside it."""
    rows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for size in config.sizes if "cost" in config.suites else ():
        path = out / _JOBS / f"cost-{size}.json"
        if not path.exists():
            write_json(path, measure(size, BLOCKS if config.cap is None else CAPPED_BLOCKS))
            console.print(f"cost of a step at n = {size}: measured", highlight=False)
        rows.append(read_json(path))
    torch.set_num_threads(threads)
    return rows


def conclude(config: Config, out: Path, rows: list[Row], cost: list[Row]) -> Results:
    """`metrics.json` with every job's numbers and those of the tables, `curves.json`, `table.md` and the figures."""
    summary = summarise(config, rows)
    plain = [{name: value for name, value in row.items() if name != "curve"} for row in rows]
    write_json(out / "metrics.json", {"lines": summary, "jobs": plain, "cost": cost})
    drawn = [job for line in config.lines() if line.suite in _CURVES for job in line.jobs]
    by_job = {Job.of(row): row for row in rows}
    write_compact(out / "curves.json", {job.name: by_job[job]["curve"] for job in drawn})
    said = [f"* {sentence}" for sentence in claims(summary, cost)]
    text = "\n".join([*said, "", markdown(summary, cost)] if said else [markdown(summary, cost)])
    write_whole(out / "table.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    figures = [draw_companion(config, rows, out / "linear"), draw_gap(summary, out / "gap")]
    return Results(text, [path for path in figures if path is not None])


def _earlier(out: Path) -> dict[str, Any]:
    """What the provenance of a run that is resumed keeps of the one before."""
    path = out / "provenance.json"
    if not path.exists():
        return {}
    record = read_json(path)
    return {"earlier": [*record.pop("earlier", []), record]}
