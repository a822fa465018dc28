"""Trainings that are stopped, killed or run out of disk go on to the same bits; foreign checkpoints are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.molecules.generator.small import FEWER, PHASES, frames, lines, same, small, training
from tests.molecules.systems import system_of

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.molecules import BoltzmannGenerator, MolecularSystem
from p4torch.molecules.generator.schedule import Schedule
from p4torch.runs.pool import Progress
from p4torch.training import load_checkpoint

ROOT = Path(__file__).parents[3]
POINTS = [phase.points for phase in PHASES]


@pytest.mark.parametrize("model", ["p4inv", "rnvp", "spline-p4inv"])
def test_a_stopped_training_goes_on_exactly(whole, tmp_path: Path, model: str) -> None:
    """Stopped within both phases, and exactly at the end of the first."""
    expected, path = whole(model)
    first, second = FEWER if model == "spline-p4inv" else PHASES
    middle = first.chunk * first.frames  # after one chunk
    for stop in (middle, first.points, first.points + 5 * 512):
        start = small(model, seed=0 if stop == middle else 1)  # what it starts with does not matter to a resume
        run = training(start, tmp_path, resume=True, report=lambda made, at=stop: made.step >= at)
        assert not run.fit() and run.points == stop
    run = training(small(model, seed=2), tmp_path, resume=True)
    assert run.fit() and run.points == first.points + second.points
    assert same(run.generator, expected)
    timed = ("seconds", "step_seconds")
    assert [{k: v for k, v in line.items() if k not in timed} for line in lines(tmp_path)] == [
        {k: v for k, v in line.items() if k not in timed} for line in lines(path)
    ]
    again = training(small(model, seed=3), tmp_path, resume=True)
    assert again.finished and again.fit() and same(again.generator, expected)


def test_without_resume_a_training_starts_afresh(whole, tmp_path: Path) -> None:
    expected, _ = whole("p4inv")
    training(small(seed=1), tmp_path, report=lambda made: True).fit()
    generator = small()
    assert training(generator, tmp_path).fit() and same(generator, expected)
    assert len(lines(tmp_path)) == 3


def test_a_log_line_behind_the_checkpoint_is_made_again(whole, tmp_path: Path) -> None:
    training(small(), tmp_path, report=lambda made: made.step >= 50 * 2560).fit()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 60 * 2560}) + '\n{"step": 999')
    assert training(small(), tmp_path, resume=True).fit()
    assert [line["step"] for line in lines(tmp_path)] == [line["step"] for line in lines(whole("p4inv")[1])]


# --- killed, and on a full disk, in processes of their own ------------------------------------------------------------

PROGRAM = """
import resource, signal, sys
import torch
from tests.molecules.generator.small import small, training
torch.set_num_threads(1)
out, limit = sys.argv[1], int(sys.argv[2])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
made = []
def report(progress):
    made.append(progress.step)
    if limit and len(made) == 51:  # after the first checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return False
training(small(), out, resume=True, report=report).fit()
"""


def test_ctrl_c_is_a_keyboard_interrupt_and_leaves_the_checkpoint(whole, tmp_path: Path) -> None:
    def report(progress: Progress) -> bool:
        if progress.step > 50 * 2560:  # after the first checkpoint
            signal.raise_signal(signal.SIGINT)
        return False

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            training(small(), tmp_path, report=report).fit()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    generator = small(seed=3)
    assert training(generator, tmp_path, resume=True).fit()
    assert same(generator, whole("p4inv")[0])


def program(out: Path, limit: int = 0) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(out), str(limit)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_training_goes_on_exactly(whole, tmp_path: Path) -> None:
    run = program(tmp_path)
    for _ in range(6000):
        if (tmp_path / "checkpoint.pt").exists() or run.poll() is not None:
            break
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    generator = small(seed=3)
    again = training(generator, tmp_path, resume=True)
    assert 0 < again.points < sum(POINTS)
    assert again.fit()
    assert same(generator, whole("p4inv")[0])
    assert [line["step"] for line in lines(tmp_path)] == [line["step"] for line in lines(whole("p4inv")[1])]


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "file"), [(60_000, "checkpoint.pt"), (100, "metrics.jsonl")])
def test_a_full_disk_leaves_the_checkpoint_before(whole, tmp_path: Path, limit: int, file: str) -> None:
    run = program(tmp_path, limit)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 1
    last = said.strip().splitlines()[-1]
    assert "CheckpointError" in last and f"`{tmp_path / file}` cannot be written (" in last
    assert last.endswith("the last checkpoint is whole: make room, resume")
    assert load_checkpoint(tmp_path / "checkpoint.pt")["points"] == 50 * 2560
    assert [path.name for path in tmp_path.glob(".*")] == []
    generator = small(seed=3)
    assert training(generator, tmp_path, resume=True).fit() and same(generator, whole("p4inv")[0])


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_training_is_refused(whole, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((whole("p4inv")[1] / "checkpoint.pt").read_bytes())
    warm = MolecularSystem.alanine_dipeptide(310.0)
    others: list[tuple[BoltzmannGenerator, Schedule, str]] = [
        (small(system=warm), Schedule(PHASES, 7), "temperature: expected 310.0, got 300.0"),
        (small(system=system_of(forcefield="amber96, obc1")), Schedule(PHASES, 7), "fingerprint: expected '.*', got '"),
        (small("rnvp"), Schedule(PHASES, 7), "model: expected 'rnvp', got 'p4inv'"),
        (small(), Schedule(PHASES, 8), "merge_every: expected 8, got 7"),
        (small(), Schedule(PHASES, 7, seed=1), "seed: expected 1, got 0"),
        (small(), Schedule(PHASES[:1], 7), "stages: expected"),
    ]
    for generator, schedule, message in others:
        before = {name: value.clone() for name, value in generator.state_dict().items()}
        with pytest.raises(CheckpointError, match=rf"`.*checkpoint\.pt` must be of the training.*{message}"):
            training(generator, tmp_path, schedule=schedule, resume=True)
        assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_a_checkpoint_of_other_frames_is_refused(whole, tmp_path: Path) -> None:
    """Coordinates are scaled by the frames: data encoded with other scales would train another distribution."""
    (tmp_path / "checkpoint.pt").write_bytes((whole("p4inv")[1] / "checkpoint.pt").read_bytes())
    other = BoltzmannGenerator.create(system_of(), frames(200, seed=8), model="rnvp").coordinates
    generator = small()
    generator.coordinates.load_state_dict(other.state_dict())
    with pytest.raises(CheckpointError, match="coordinates of other frames"):
        training(generator, tmp_path, resume=True)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(whole, tmp_path: Path, share: float) -> None:
    content = (whole("p4inv")[1] / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"`.*checkpoint\.pt` must be a checkpoint"):
        training(small(), tmp_path, resume=True)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="`out` must be a folder that can be written"):
        training(small(), tmp_path / "file")
