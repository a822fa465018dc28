"""Files of runs: whole or not there, nothing executed, and where they came from."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.runs import folder
from p4torch.runs.checkpoint import load_checkpoint, save_checkpoint, write_whole
from p4torch.runs.provenance import provenance


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_whole(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_checkpoints_never_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return os.mkdir, (str(tmp_path / "ran"),)

    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump(Evil(), file)
    torch.save({"state": Evil()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(CheckpointError, match="tensors and plain values"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_that_are_broken_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 3, "x": torch.ones(2)})
    assert load_checkpoint(path)["step"] == 3
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        load_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="must hold a dict, got list"):
        load_checkpoint(path)


def test_a_folder_that_cannot_be_written_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"`out` must be a folder that can be written, got .*file/run"):
        folder.writable_folder(tmp_path / "file" / "run")
    assert folder.writable_folder(tmp_path / "new" / "run").is_dir()
    assert not os.listdir(tmp_path / "new" / "run")


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    folder.write_json(tmp_path / "a.json", {"a": math.inf, "b": [math.nan, 1.5], "c": (1, 2)})
    assert folder.read_json(tmp_path / "a.json") == {"a": None, "b": [None, 1.5], "c": [1, 2]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"a\.json"):
        folder.read_json(tmp_path / "a.json")


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (50, 100, 150):
        folder.append_line(path, {"step": step, "loss": math.inf})
    with path.open("a") as file:
        file.write('{"step": 2')
    folder.keep_lines(path, 100)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [50, 100]


def test_provenance_says_what_a_reader_needs() -> None:
    record = provenance(seed=4)
    assert record["seed"] == 4 and record["versions"]["torch"] == importlib.metadata.version("torch")
    assert record["machine"]["cores"] >= 1 and record["machine"]["cpu"] and record["command"]
