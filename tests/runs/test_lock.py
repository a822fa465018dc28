"""One run at a time in a folder; what killed ones have left is taken over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p4torch.errors import ArgumentError
from p4torch.runs.lock import LOCK, locked
from p4torch.runs.runner import recorded

#: A run that waits to be ended, once it has said so.
HOLDER = """
import sys, time, pathlib
from p4torch.runs.lock import locked
out = pathlib.Path(sys.argv[1])
with locked(out):
    (out / "here").touch()
    time.sleep(600)
"""


def holder(out: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)])
    while not (out / "here").exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_another_process_is_named_and_a_killed_one_is_followed(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(
            ArgumentError, match=rf"`out` must be a folder in which no .*with process {process.pid} on "
        ):
            locked(tmp_path).__enter__()
        with pytest.raises(ArgumentError, match="no other run"), recorded(tmp_path):
            pass
        assert not (tmp_path / "provenance.json").exists()  # nothing of the other run is touched
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).exists()
        with locked(tmp_path):
            assert f"process {os.getpid()}" in (tmp_path / LOCK).read_text()
        assert not (tmp_path / LOCK).exists()
    finally:
        process.kill()
        process.wait()


def test_the_same_process_has_it_once(tmp_path: Path) -> None:
    for _ in range(2):  # and again, afterwards
        with locked(tmp_path), pytest.raises(ArgumentError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    with recorded(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert os.listdir(tmp_path) == ["provenance.json"]


def test_temporary_files_of_the_dead_are_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / "jobs").mkdir()
    dead = [tmp_path / f".checkpoint.pt.{process.pid}.tmp", tmp_path / "jobs" / f".a.json.{process.pid}.tmp"]
    kept = [tmp_path / f".checkpoint.pt.{os.getpid()}.tmp", tmp_path / "mine.tmp", tmp_path / ".other.tmp"]
    for path in (*dead, *kept):
        path.touch()
    with locked(tmp_path):
        assert not any(path.exists() for path in dead) and all(path.exists() for path in kept)
