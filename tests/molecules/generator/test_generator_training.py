"""Training: losses fall, merges happen, broken gradients are left out; stops, kills and full disks lose nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.molecules.generator.small import FEWER, STAGES, frames, small, training
from tests.molecules.systems import system_of
from torch import Tensor

from p4torch.errors import ArgumentError, CheckpointError, P4Error
from p4torch.molecules import BoltzmannGenerator, MolecularSystem
from p4torch.molecules.generator import training as module
from p4torch.molecules.generator.encoded import Batches, Encoded
from p4torch.molecules.generator.protocol import Protocol, Stage
from p4torch.molecules.generator.training import Progress
from p4torch.training import load_checkpoint

ROOT = Path(__file__).parents[3]
POINTS = [stage.points for stage in STAGES]


def same(one: BoltzmannGenerator, other: BoltzmannGenerator) -> bool:
    """Every bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[BoltzmannGenerator, Path]]:
    """Trainings of both stages that nobody stops, by model."""
    made: dict[str, tuple[BoltzmannGenerator, Path]] = {}

    def of(model: str) -> tuple[BoltzmannGenerator, Path]:
        if model not in made:
            torch.set_num_threads(1)
            made[model] = small(model), tmp_path_factory.mktemp(model)
            assert training(*made[model]).fit()
        return made[model]

    return of


# --- right ------------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_merges_happen(tmp_path: Path) -> None:
    generator = small()
    held_out = Encoded(generator.coordinates, frames(100, seed=5))
    run = training(generator, tmp_path, held_out=held_out, level=(-20.0, 30.0))
    start = -float(generator.flow.log_prob(held_out.z).mean())
    assert run.fit() and run.finished
    found = lines(tmp_path)
    assert [(line["stage"], line["stage_step"]) for line in found] == [(0, 50), (0, 60), (1, 12)]
    assert [line["step"] for line in found] == [50 * 2560, POINTS[0], sum(POINTS)]
    assert found[1]["loss"] < found[0]["loss"] and found[1]["nll"] < start - 1
    assert [line["merged"] for line in found] == [14, 16, 18]  # two layers each, every 7 steps; 1 in the second stage
    assert [line["energy_evaluations"] for line in found] == [0, 0, 12 * 256]
    assert all(line["skipped"] == line["steps_left_out"] == line["energies_left_out"] == 0 for line in found)
    assert all(0 < line["ess"] <= 1 and 0 <= line["low_energy_fraction"] <= 1 for line in found)
    assert json.loads(json.dumps(run.lines)) == found
    assert found[2]["step_seconds"][0] == found[1]["step_seconds"][0] > 0 == found[1]["step_seconds"][1]


def test_rnvp_has_nothing_to_merge(whole) -> None:
    assert {line["merged"] for line in lines(whole("rnvp")[1])} == {0}


def test_batches_are_pure_functions_of_seed_and_step() -> None:
    generator = small()
    data = Encoded(generator.coordinates, frames())
    stage = (data, generator.flow.base, (2, 3))
    everything = list(Batches(*stage, steps=11, chunk=4, seed=1))
    assert [chunk.shape for chunk in everything] == [(4, 5, 60), (4, 5, 60), (3, 5, 60)]
    later = list(Batches(*stage, steps=11, chunk=4, seed=1, done=4))
    assert all(torch.equal(a, b) for a, b in zip(everything[1:], later, strict=True))
    assert not torch.equal(everything[0], everything[1])
    assert not torch.equal(everything[0], next(iter(Batches(*stage, steps=11, chunk=4, seed=2))))
    assert bool((everything[0][0, 2:].unsqueeze(1) == data.z).all(-1).any(-1).all())  # each is a frame


def test_frames_are_drawn_as_often_as_their_weights_say() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0]).double()
    data = Encoded(small().coordinates, frames()[:4], weights)
    drawn = data.draw(4000, torch.Generator().manual_seed(0))
    counts = [int((drawn == row).all(-1).sum()) for row in data.z]
    assert counts[0] == counts[3] == 0 and sum(counts) == 4000
    assert counts[2] == pytest.approx(3000, abs=4.5 * math.sqrt(4000 * 0.75 * 0.25))


def test_likelihood_training_needs_frames() -> None:
    with pytest.raises(ArgumentError, match="`frames` must be given"):
        module.Training(small(), None, Protocol(STAGES))


def test_training_from_methods() -> None:
    generator = small()
    run = generator.fit_likelihood(frames(), steps=30, batch=64, merge_every=5, seed=3)
    assert run.finished and run.protocol.merge_every == 5 and run.protocol.seed == 3
    assert run.lines[-1]["merged"] == 12 and run.evaluations == 0
    run = generator.fit_energy(frames(), steps=4, samples=32, batch=16)
    assert run.evaluations == 128 and run.points == 4 * 48
    with pytest.raises(ArgumentError, match="`x`"):
        generator.fit_likelihood(frames()[:, :10], steps=3)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Stage(-1), "steps"),
        (lambda: Stage(True), "steps"),
        (lambda: Stage(10, frames=0), "frames"),
        (lambda: Stage(10, samples=1.5), "samples"),  # type: ignore[arg-type]
        (lambda: Stage(10, learning_rate=0.0), "learning_rate"),
        (lambda: Stage(10, likelihood=math.nan), "likelihood"),
        (lambda: Protocol((Stage(10),), merge_every=0), "merge_every"),
        (lambda: Protocol((Stage(10),), clip=0.0), "clip"),
        (lambda: Protocol((Stage(10),), clip=math.nan), "clip"),
    ],
)
def test_bad_settings_are_refused_by_name(make: Callable[[], object], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}` must be"):
        make()


# --- what is not finite -----------------------------------------------------------------------------------------------


def breaking(generator: BoltzmannGenerator, bad: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of chosen calls are NaN."""
    calls, true = iter(range(10**6)), generator.energy_loss

    def energy_loss(latent: Tensor) -> tuple[Tensor, Tensor]:
        loss, broken = true(latent)
        return (loss * math.nan, broken) if bad(next(calls)) else (loss, broken)

    monkeypatch.setattr(generator, "energy_loss", energy_loss)


def test_steps_without_a_finite_gradient_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = small()
    breaking(generator, lambda call: call in (3, 4), monkeypatch)
    assert training(generator, tmp_path).fit()
    assert lines(tmp_path)[-1]["steps_left_out"] == 2
    assert all(bool(value.isfinite().all()) for value in generator.parameters())


def test_a_hundred_broken_steps_in_a_row_end_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small("rnvp")
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    breaking(generator, lambda call: True, monkeypatch)
    run = training(generator, tmp_path, protocol=Protocol((Stage(300, 8, 8),)))
    with pytest.raises(P4Error, match="100 steps in a row had gradients that are not finite, up to step 100"):
        run.fit()
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    generator = small("rnvp")
    breaking(generator, lambda call: call % 100 != 0, monkeypatch)  # never 100 in a row
    run = training(generator, tmp_path, protocol=Protocol((Stage(200, 8, 8),)))
    assert run.fit() and run.left_out == 198


def test_counts_are_kept_where_a_training_is_stopped_between_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Protocol((Stage(12, frames=256, samples=256),))

    def run(stop: int) -> module.Training:
        generator = small()
        breaking(generator, lambda call: call in (1, 2), monkeypatch)
        true = generator.potential.unregularised
        generator.potential.unregularised = lambda x: torch.where(torch.arange(len(x)) == 3, math.nan, true(x))
        found = training(generator, tmp_path, protocol=stages, resume=True, report=lambda made: made.step >= stop)
        found.fit()
        return found

    run(stop=5 * 512)  # the first chunk
    assert not (tmp_path / "metrics.jsonl").exists()
    seconds = sum(load_checkpoint(tmp_path / "checkpoint.pt")["step_seconds"])
    assert seconds > 0
    monkeypatch.undo()
    last = run(stop=10**9)
    (line,) = lines(tmp_path)
    # of the first run two steps, of the second one two more; a broken energy in every step
    assert line["steps_left_out"] == last.left_out == 4 and line["energies_left_out"] == last.broken == 12
    assert last.step_seconds[0] > seconds


# --- resumed exactly --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["p4inv", "rnvp", "spline-p4inv"])
def test_a_stopped_training_goes_on_exactly(whole, tmp_path: Path, model: str) -> None:
    """Stopped within both stages, and exactly at the end of the first."""
    expected, path = whole(model)
    first, second = FEWER if model == "spline-p4inv" else STAGES
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
    others: list[tuple[BoltzmannGenerator, Protocol, str]] = [
        (small(system=MolecularSystem.alanine_dipeptide(310.0)), Protocol(STAGES, 7), "temperature: expected 310.0, got 300.0"),
        (small(system=system_of(forcefield="amber96, obc1")), Protocol(STAGES, 7), "fingerprint: expected '.*', got '"),
        (small("rnvp"), Protocol(STAGES, 7), "model: expected 'rnvp', got 'p4inv'"),
        (small(), Protocol(STAGES, 8), "merge_every: expected 8, got 7"),
        (small(), Protocol(STAGES, 7, seed=1), "seed: expected 1, got 0"),
        (small(), Protocol(STAGES[:1], 7), "stages: expected"),
    ]
    for generator, protocol, message in others:
        before = {name: value.clone() for name, value in generator.state_dict().items()}
        with pytest.raises(CheckpointError, match=rf"`.*checkpoint\.pt` must be of the training.*{message}"):
            training(generator, tmp_path, protocol=protocol, resume=True)
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


def test_progress_has_a_few_words(tmp_path: Path) -> None:
    said: list[Progress] = []
    run = training(small(), report=lambda made: bool(said.append(made)), level=(-20.0, 30.0))
    assert run.fit()
    assert said[0].step == 2560 and said[0].note.startswith("loss ")
    assert "ESS" in said[-1].note and "18 merged, 0 skipped" in said[-1].note
