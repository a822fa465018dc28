"""A run of many jobs: rows in files, resume, provenance, results."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.runs.folder import read_json, write_json
from p4torch.runs.pool import JobError, Progress, Report, Row
from p4torch.runs.runner import Results, Run, count_workers, recorded, start


@dataclass(frozen=True)
class Square:
    """A job that squares its number."""

    value: int
    steps: int = 2

    @property
    def name(self) -> str:
        return f"square{self.value}"

    @property
    def title(self) -> str:
        return f"square of {self.value}"

    def fields(self) -> dict[str, Any]:
        return asdict(self)


def work(log: Path, job: Square, report: Report[Progress]) -> Row | None:
    with log.open("a") as file:
        file.write(f"{job.value} ")
    if report(Progress(1, "half")):
        return None
    return {**job.fields(), "square": job.value**2, "infinite": float("inf")}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(out: Path, jobs: list[Square], *, resume: bool = False) -> tuple[list[Row], str]:
    console = Console(file=io.StringIO(), width=200)
    with start(out, {"experiment": "squares"}, seeds=(0,), workers=2, resume=resume, console=console) as run:
        result = run.rows(jobs, partial(work, out.parent / "log"), lambda job, row: f"{job.title}: {row['square']}")
        assert list(result) == jobs
        run.leave(Results({"sum": sum(row["square"] for row in result.values())}, "| a |\n", {"none": None}))
    return list(result.values()), console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_done_is_read_and_what_is_left_is_done(tmp_path: Path) -> None:
    out, jobs = tmp_path / "run", [Square(2), Square(3)]
    result, said = rows(out, jobs)
    assert [row["square"] for row in result] == [4, 9]
    assert all(row["infinite"] is None for row in result)  # as in their files, resumed or not
    assert "square of 3: 9" in said and "2/2 jobs" in said
    assert read_json(out / "metrics.json") == {"sum": 13} and (out / "table.md").read_text() == "| a |\n"

    more, said = rows(out, [Square(4), *jobs], resume=True)
    assert [row["square"] for row in more] == [16, 4, 9] and "2 of 3 jobs are done already" in said
    assert sorted((tmp_path / "log").read_text().split()) == ["2", "3", "4"]
    assert rows(out, jobs, resume=True)[0] == result
    record = read_json(out / "provenance.json")
    assert record["seeds"] == [0] and record["workers"] == 2 and record["threads"] == 1 and record["wall_seconds"] > 0
    assert len(record["earlier"]) == 2 and "earlier" not in record["earlier"][0]


def test_the_file_of_another_job_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    write_json(tmp_path / "jobs" / "square2.json", Square(2, steps=7).fields())
    run = Run(tmp_path, 1, Console(file=io.StringIO()))
    with pytest.raises(CheckpointError, match="steps: expected 2, got 7"):
        run.rows([Square(1), Square(2)], partial(work, tmp_path / "log"), lambda job, row: "")
    assert not (tmp_path / "log").exists()


def test_a_job_that_fails_is_named_and_others_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, 1, Console(file=io.StringIO()))
    with pytest.raises(JobError, match=r"(?s)square of x: .*TypeError"):
        run.rows([Square(1), Square("x")], partial(work, tmp_path / "log"), lambda job, row: "")  # type: ignore[arg-type]
    assert read_json(tmp_path / "jobs" / "square1.json")["square"] == 1


def test_a_record_has_what_is_added_and_the_time_of_all_attempts(tmp_path: Path) -> None:
    write_json(tmp_path / "provenance.json", {"workers": 1, "wall_seconds": 1000.0})
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path, workers=2) as record:
        assert read_json(tmp_path / "provenance.json")["wall_seconds"] is None  # as after a kill
        record["rows"] = [1, 2]
        raise KeyboardInterrupt
    second = read_json(tmp_path / "provenance.json")
    assert second["workers"] == 2 and second["rows"] == [1, 2] and second["wall_seconds"] > 1000.0
    assert [attempt["wall_seconds"] for attempt in second["earlier"]] == [1000.0]

    write_json(tmp_path / "provenance.json", {**second, "wall_seconds": None})
    with recorded(tmp_path):
        pass
    third = read_json(tmp_path / "provenance.json")
    assert third["wall_seconds"] > 1000.0 and len(third["earlier"]) == 2


def test_workers_are_counted() -> None:
    assert count_workers(3) == 3 and count_workers(None) >= 1
    with pytest.raises(ArgumentError, match="`workers` must be an integer >= 1, got 0"):
        count_workers(0)
