"""The linear problems: targets, one job, resume of a run, tables and figures."""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.command import execute
from experiments.linear import settings
from experiments.linear.config import TOLERANCE, Job
from experiments.linear.job import TrainingRun, run_job
from experiments.linear.problems import PROBLEMS, SPECTRUM
from experiments.linear.run import work
from experiments.linear.suites import PLAIN, SUITES, Config, resolve
from experiments.linear.table import summarise
from experiments.linear.trace import PATH_POINTS, POINTS, Trace
from rich.console import Console
from tests.experiments.commands import call

from p4torch.errors import ArgumentError, CheckpointError

#: Of float64 algebra at these sizes.
ROUNDING = 1e-10
#: What the companion calls "5 decimals".
FIVE_DECIMALS = 1e-5

JOB = Job("positive-32", "p4inv", seed=0, steps=40, learning_rate=0.03, rank=4, every=5, scaled=True, paths=True)
TIMES = ("step_seconds", "mean_step_seconds")


# --- targets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rotation-64", "rotation-128"])
def test_rotations_are_rotations(name: str) -> None:
    problem = PROBLEMS[name]
    assert not torch.equal(problem.target(1), problem.target(2))
    for seed in range(3):
        target = problem.target(seed)
        eye = torch.eye(problem.size, dtype=torch.float64)
        assert (target @ target.mT - eye).abs().max() <= ROUNDING
        assert (torch.linalg.det(target) - 1).abs() <= ROUNDING


def test_the_other_targets_have_the_stated_spectrum() -> None:
    target = PROBLEMS["positive-32"].target(0)
    assert (target - target.mT).abs().max() <= ROUNDING
    expected = torch.linspace(*SPECTRUM, 32, dtype=torch.float64)
    assert (torch.linalg.eigvalsh(target) - expected).abs().max() <= ROUNDING
    assert torch.linalg.slogdet(PROBLEMS["minus-101"].target(0))[0] == -1  # beyond the singular set


# --- one job --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "p4inv", "inverse"])
def test_each_way_starts_at_the_identity_and_comes_nearer(way: Any) -> None:
    job = replace(JOB, way=way, learning_rate=3e-3)
    start = TrainingRun(job)
    assert (start.matrix() - torch.eye(32, dtype=torch.float64)).abs().max() <= ROUNDING
    row = run_job(job)
    assert row is not None and row["status"] == "limit" and row["steps_made"] == 40
    assert row["loss"] < 0.8 * start.exact_loss()
    assert row["component_right"] and len(row["curve"]["path"][0]) == 32
    if way == "plain":
        assert row["inverse_error"] is None and row["parameters"] == 32 * 32
    else:
        assert row["inverse_error"] <= FIVE_DECIMALS and row["logabsdet_error"] <= FIVE_DECIMALS and row["sign_right"]
        assert row["merged"] == 8 and row["parameters"] == 2 * 32 * 4


def test_the_inverse_way_trains_the_inverse() -> None:
    training = TrainingRun(replace(JOB, way="inverse"))
    for _ in range(7):
        training.advance()
    x = torch.randn(5, 32)
    rounding = 1e-4  # of a solve in float32
    assert (training.apply(x).double() - x.double() @ training.matrix().mT).abs().max() <= rounding


def test_a_job_stops_when_it_has_arrived() -> None:
    row = run_job(Job("rotation-64", seed=0, steps=400, learning_rate=3e-2, **settings.PROPOSED))
    assert row is not None and row["status"] == "reached" and row["steps_made"] < 200
    assert row["loss"] < TOLERANCE and row["curve"]["steps"][-1] == row["steps_made"]


def test_a_job_that_diverges_says_so() -> None:
    row = run_job(Job("positive-32", "plain", seed=0, steps=200, learning_rate=1e3, optimizer="sgd"))
    assert row is not None and row["status"] == "diverged"


@pytest.mark.slow
def test_a_rotation_is_learnt_through_the_inverse() -> None:
    row = run_job(Job("rotation-128", seed=0, steps=600, learning_rate=3e-2, **settings.INVERSE_PROPOSED))
    assert row is not None and row["status"] == "reached" and row["inverse_error"] <= FIVE_DECIMALS


def test_a_job_is_a_function_of_its_fields() -> None:
    first, again = run_job(JOB), run_job(JOB)
    assert first is not None and again is not None
    assert {**first, **dict.fromkeys(TIMES)} == {**again, **dict.fromkeys(TIMES)}
    assert run_job(JOB, lambda progress: True) is None
    assert Job.of(first) == JOB and JOB.name != replace(JOB, growth=2.0).name


def test_a_trace_stays_short_and_keeps_the_ends() -> None:
    def measured(paths: bool) -> dict[str, Any]:
        return {"loss": 1.0, "residual": math.nan if not paths else 2.0, "eigenvalues": torch.zeros(1)}

    trace = Trace(measured, paths=True)
    for step in range(5001):
        trace.look(step)
    trace.end(5003)
    assert POINTS / 2 <= len(trace.steps) <= POINTS + 1 and PATH_POINTS / 2 <= len(trace.path) <= PATH_POINTS + 1
    assert trace.steps[0] == trace.path[0][0] == 0 and trace.steps[-1] == trace.path[-1][0] == 5003


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": "minus-102"}, "`problem` must be .* positive-32, .*, got minus-102"),
        ({"way": "sideways"}, "`way` must be .* plain, p4inv, inverse, got sideways"),
        ({"rank": 0}, "`rank` must be an integer >= 1, got 0"),
        ({"learning_rate": math.nan}, "`lr` must be a positive number, got nan"),
        ({"clip": 0.0}, "`clip` must be a positive number or None, got 0.0"),
        ({"penalty": 1.0, "bounds": False}, "`penalty` must be 0 where there are no bounds"),
    ],
)
def test_bad_jobs_name_the_argument(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        replace(JOB, **change)


# --- suites ---------------------------------------------------------------------------------------------------------


def test_suites_cover_what_they_promise() -> None:
    config = Config(tuple(SUITES))
    lines = {name: [line for line in config.lines() if line.suite == name] for name in SUITES}
    companion = [line.jobs[0] for line in lines["companion"]]
    assert {(job.problem, job.way) for job in companion} == {
        (problem, way)
        for problem in ("positive-32", "rotation-128", "minus-101")
        for way in ("plain", "p4inv", "inverse")
    }
    for kind in {(job.problem, job.way) for job in companion if job.way != "plain"}:
        got = {(job.rank, job.every) for job in companion if (job.problem, job.way) == kind}
        assert got == {(1, 1), (1, 10), (1, 50), (2, 10), (4, 10), (8, 10), (16, 10)}
    rates = {tuple(dict.fromkeys(job.learning_rate for job in line.jobs)) for line in lines["gap"]}
    assert rates == {settings.RATES}  # the same short list for all
    assert all({job.seed for job in line.jobs} == set(settings.SEEDS) for line in lines["gap"])
    jobs = config.jobs()
    assert len(jobs) == len(set(jobs)) == len({job.name for job in jobs})
    for line in config.lines():
        assert line.reference is None or any(
            (other.suite, other.title, other.jobs[0].problem) == (line.suite, line.reference, line.jobs[0].problem)
            for other in config.lines()
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suites": ("gap", "chasm")}, "`suites` must be different names out of companion, .*, got chasm"),
        ({"seeds": (0, 0)}, "`seeds` must be different integers .*, got 0,0"),
        ({"rates": (-1.0,)}, "`lr` must be a positive number, got -1.0"),
        ({"cap": 0}, "`cap` must be an integer >= 1, got 0"),
    ],
)
def test_bad_configurations_name_the_argument(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Config(**{"suites": ("gap",), **changes})


def row_of(job: Job, steps: int, status: str = "reached") -> dict[str, Any]:
    """A row that nobody trained."""
    absent = dict.fromkeys(("inverse_error", "worst_residual", "logabsdet_error", "sign_right"))
    counts = {"component_right": True, "parameters": 1, "step_seconds": 0.001, "merged": 0, "skipped": 0}
    loss = 9e-6 if status == "reached" else 1.0
    return {**job.fields(), **absent, **counts, "status": status, "steps_made": steps, "loss": loss}


def test_a_line_counts_at_its_best_rate_only_if_all_seeds_arrive() -> None:
    config = Config(("gap",), seeds=(0, 1), rates=(0.1, 0.2))
    rows = []
    for job in config.jobs():
        fast = job.learning_rate == 0.2
        late = fast and job.way != "plain" and job.seed == 1
        rows.append(row_of(job, (50 if fast else 100) + job.seed, "limit" if late else "reached"))
    by_line = {(row["group"], row["title"]): row for row in summarise(config, rows)}
    assert (by_line["grid", PLAIN]["learning_rate"], by_line["grid", PLAIN]["steps_mean"]) == (0.2, 50.5)
    best = by_line["proposed", "proposed scheme"]
    assert (best["learning_rate"], best["steps_mean"], best["ratio"]) == (0.1, 100.5, 100.5 / 50.5)
    none = [{**row, "status": "diverged", "loss": None} for row in rows]
    assert all(row["steps_mean"] is None and row["diverged"] == 2 for row in summarise(config, none))


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of everything."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    execute(partial(resolve, short=True), work, {}, folder, 2, quiet())
    return folder


def quiet() -> Console:
    """Says nothing."""
    return Console(file=io.StringIO())


@pytest.mark.slow
def test_a_run_leaves_tables_and_figures(whole: Path) -> None:
    names = {"config.json", "curves.json", "gap.pdf", "gap.png", "jobs", "linear.pdf", "linear.png"}
    assert set(os.listdir(whole)) == names | {"metrics.json", "provenance.json", "table.md"}
    for name in ("linear", "gap"):
        assert (whole / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (whole / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    text = (whole / "table.md").read_text(encoding="utf-8")
    assert text.count("## ") == len(SUITES) and "inverse, rank 1, N = 50" in text
    metrics = json.loads((whole / "metrics.json").read_text())
    config = Config(tuple(SUITES), **settings.SHORT)
    assert len(metrics["lines"]) == len(config.lines()) and len(metrics["jobs"]) == len(config.jobs())
    (cost,) = metrics["cost"]
    assert (cost["size"], cost["rank"], cost["threads"]) == (64, 16, 1)
    assert cost["step_ratio"] == pytest.approx(cost["p4inv_seconds"] / cost["plain_seconds"])
    record = json.loads((whole / "provenance.json").read_text())
    assert record["wall_seconds"] > 0 and record["seeds"] == [0] and record["threads"] == 1


@pytest.mark.slow
def test_a_run_that_lost_jobs_goes_on_to_the_same_rows(whole: Path) -> None:
    def rows() -> list[dict[str, Any]]:
        jobs = json.loads((whole / "metrics.json").read_text())["jobs"]
        return [{**row, **dict.fromkeys(TIMES)} for row in jobs]

    before = rows()
    files = sorted((whole / "jobs").glob("positive-32-*.json"))
    kept = {path: path.stat().st_mtime_ns for path in (whole / "jobs").iterdir() if path not in files[:3]}
    for path in files[:3]:
        path.unlink()
    result = call("linear", "--resume", "--out", str(whole), "--workers", "1")
    assert result.exit_code == 0, result.output
    assert "(3/3 jobs" in result.output and "jobs are done already" in result.output
    assert rows() == before
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_row_of_another_job_is_refused(tmp_path: Path) -> None:
    config = Config(("equal-rate",), seeds=(0,), cap=1)
    first, second = config.jobs()[:2]
    (tmp_path / "jobs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config.fields()))
    (tmp_path / "jobs" / f"{first.name}.json").write_text(json.dumps(second.fields()))
    with pytest.raises(CheckpointError, match="way: expected 'plain', got 'p4inv'"):
        execute(resolve, work, {}, tmp_path, 1, quiet(), resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suites", "chasm"], "`suites` must be different names out of companion"),
        (["--seeds", "x"], "`seeds` must be integers with commas between them, got 'x'"),
        (["--workers", "0"], "`workers` must be an integer >= 1, got 0"),
    ],
)
def test_bad_input_is_one_line_before_any_training(options: list[str], message: str, tmp_path: Path) -> None:
    result = call("linear", *options, "--out", str(tmp_path / "new"))
    assert result.exit_code == 2 and result.output.startswith(f"Error: {message}") and result.output.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_help_and_list() -> None:
    assert "python -m experiments linear --suites gap,cost --seeds 0 --out runs/gap" in " ".join(
        call("linear", "--help").output.split()
    )
    listed = call("linear", "--list").output
    assert all(name in listed for name in (*SUITES, *PROBLEMS))
