"""What the example scripts share."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.scaffold import Job, Row, Stopwatch, add_options, peer, run, train
from rich.console import Console

from p4torch.runs.folder import read_json
from p4torch.runs.runner import Results


class Counter:
    """A training that counts, and dies at a step if told to."""

    def __init__(self, log: list[str], name: str, dies: int | None = None) -> None:
        self.step, self.log, self.name, self.dies = 0, log, name, dies

    @property
    def note(self) -> str:
        return f"at {self.step}"

    def advance(self) -> None:
        if self.step == self.dies:
            raise KeyboardInterrupt
        self.step += 1
        self.log.append(f"{self.name}{self.step}")

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def row(self) -> Row:
        return {"steps": self.step}


def jobs(log: list[str], dies: int | None = None) -> list[Job]:
    return [
        Job("a", "first", 5, lambda: Counter(log, "a")),
        Job("b", "second", 3, lambda: Counter(log, "b", dies)),
    ]


def silent() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_variants_take_turns(tmp_path: Path) -> None:
    log: list[str] = []
    rows = train(jobs(log), tmp_path, silent(), chunk=2)
    assert log == ["a1", "a2", "b1", "b2", "a3", "a4", "b3", "a5"]
    assert list(rows.values()) == [{"steps": 5}, {"steps": 3}]


def test_a_killed_run_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    log: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(jobs(log, dies=2), tmp_path, silent(), chunk=2)
    del log[:]
    rows = train(jobs(log), tmp_path, silent(), chunk=2)
    assert log == ["a5", "b3"]
    assert [row["steps"] for row in rows.values()] == [5, 3]


def test_a_stopwatch_adds_up_and_leaves_out_what_is_between() -> None:
    watch, square = Stopwatch(), torch.ones(200, 200)
    with watch:
        square @ square
    first = watch.seconds
    for _ in range(20):
        square @ square
    assert watch.seconds == first >= 0
    with watch:
        square @ square
    assert watch.seconds >= first


def test_a_missing_peer_is_named() -> None:
    console = silent()
    assert peer("no_such_package_of_ours", console) is None
    assert "no_such_package_of_ours is missing" in console.file.getvalue()  # type: ignore[attr-defined]
    assert peer("torch", console) is torch


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser, "runs/nothing", seeds="0,1")
    return parser.parse_args(arguments)


def test_a_run_leaves_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = Results({"curve": [1.0, float("nan")]}, "| a |\n", {})
    given = options("--out", str(out))
    assert given.seeds == (0, 1)
    assert run("examples.nothing", given, {"steps": 3}, lambda folder, console: results) == 0
    assert read_json(out / "config.json") == {"steps": 3}
    assert read_json(out / "metrics.json") == {"curve": [1.0, None]}
    assert "CPU seconds" in (out / "table.md").read_text()
    record = read_json(out / "provenance.json")
    assert record["command"].startswith("python -m examples.nothing") and record["threads"] == 1
    assert run("examples.nothing", given, {"steps": 3}, lambda folder, console: results) == 2  # not empty


def test_a_stopped_run_says_so_and_resumes_with_its_configuration_only(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def stopped(folder: Path, console: Console) -> Results:
        raise KeyboardInterrupt

    assert run("examples.nothing", options("--out", str(out)), {"steps": 3}, stopped) == 130
    again = options("--out", str(out), "--resume")
    assert run("examples.nothing", again, {"steps": 4}, stopped) == 2
    assert run("examples.nothing", again, {"steps": 3}, lambda folder, console: Results({}, "", {})) == 0
    assert "earlier" in read_json(out / "provenance.json")
