"""What a run consists of: the time of a step, all jobs, tables and figures."""

from __future__ import annotations

from experiments.linear.config import Job
from experiments.linear.cost import BLOCKS, CAPPED_BLOCKS, measure
from experiments.linear.figure import draw_companion, draw_gap
from experiments.linear.job import run_job
from experiments.linear.suites import Config
from experiments.linear.table import claims, markdown, summarise
from experiments.tables import Row
from p4torch.runs.folder import read_json, write_compact, write_json
from p4torch.runs.runner import JOBS, Results, Run

#: Suites whose loss curves are kept beside the rows.
_CURVES = ("companion", "inverse")


def work(config: Config, run: Run) -> None:
    """All jobs, and what they leave: every job's numbers and those of the tables; the curves go to `curves.json`."""
    cost, jobs = measure_cost(config, run), config.jobs()
    longest_first = sorted(jobs, key=lambda job: -job.steps)
    by_job = run.rows(longest_first, run_job, _said, write=write_compact)
    rows = [by_job[job] for job in jobs]
    summary = summarise(config, rows)
    drawn = [job for line in config.lines() if line.suite in _CURVES for job in line.jobs]
    write_compact(run.out / "curves.json", {job.name: by_job[job]["curve"] for job in drawn})
    plain = [{name: value for name, value in row.items() if name != "curve"} for row in rows]
    said = [f"* {sentence}" for sentence in claims(summary, cost)]
    text = "\n".join([*said, "", markdown(summary, cost)] if said else [markdown(summary, cost)])
    figures = {"linear": draw_companion(config, rows), "gap": draw_gap(summary)}
    run.leave(Results({"lines": summary, "jobs": plain, "cost": cost}, text, figures))


def measure_cost(config: Config, run: Run) -> list[Row]:
    """The rows of "cost", in this process and before any other is started: nothing of ours runs beside it."""
    rows = []
    (run.out / JOBS).mkdir(exist_ok=True)
    for size in config.sizes if "cost" in config.suites else ():
        path = run.out / JOBS / f"cost-{size}.json"
        if not path.exists():
            write_json(path, measure(size, BLOCKS if config.cap is None else CAPPED_BLOCKS))
            run.say(f"cost of a step at n = {size}: measured")
        rows.append(read_json(path))
    return rows


def _said(job: Job, row: Row) -> str:
    how = {"reached": f"{row['steps_made']} steps", "limit": f"loss {row['loss']:.1e} at the limit"}
    return f"{job.title}: {how.get(row['status'], row['status'])}"
