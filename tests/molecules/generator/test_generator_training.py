"""Training: losses fall, merges happen, broken gradients are left out and counted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.molecules.generator.small import PHASES, frames, lines, small, training
from torch import Tensor

from p4torch.errors import ArgumentError, P4Error
from p4torch.molecules import BoltzmannGenerator
from p4torch.molecules.generator import training as module
from p4torch.molecules.generator.encoded import Batches, Encoded
from p4torch.molecules.generator.schedule import Phase, Schedule
from p4torch.runs.pool import Progress
from p4torch.training import load_checkpoint

POINTS = [phase.points for phase in PHASES]


# --- right ------------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_merges_happen(tmp_path: Path) -> None:
    generator = small()
    held_out = Encoded(generator.coordinates, frames(100, seed=5))
    run = training(generator, tmp_path, held_out=held_out, level=(-20.0, 30.0))
    start = -float(generator.flow.log_prob(held_out.z).mean().detach())
    assert run.fit() and run.finished
    result = lines(tmp_path)
    assert [(line["stage"], line["stage_step"]) for line in result] == [(0, 50), (0, 60), (1, 12)]
    assert [line["step"] for line in result] == [50 * 2560, POINTS[0], sum(POINTS)]
    assert result[1]["loss"] < result[0]["loss"] and result[1]["nll"] < start - 1
    assert [line["merged"] for line in result] == [14, 16, 18]  # two layers each, every 7 steps; 1 in the second phase
    assert [line["energy_evaluations"] for line in result] == [0, 0, 12 * 256]
    assert all(line["skipped"] == line["steps_left_out"] == line["energies_left_out"] == 0 for line in result)
    assert all(0 < line["ess"] <= 1 and 0 <= line["low_energy_fraction"] <= 1 for line in result)
    assert json.loads(json.dumps(run.lines)) == result
    assert result[2]["step_seconds"][0] == result[1]["step_seconds"][0] > 0 == result[1]["step_seconds"][1]


def test_rnvp_has_nothing_to_merge(whole) -> None:
    assert {line["merged"] for line in lines(whole("rnvp")[1])} == {0}


def test_batches_are_pure_functions_of_seed_stage_and_step() -> None:
    generator = small()
    data = Encoded(generator.coordinates, frames())
    phase = Phase(11, frames=140, samples=500)
    assert phase.chunk == 4
    batches = partial(Batches, data, generator.flow.base, phase)
    everything = list(batches(seed=1))
    assert [chunk.shape for chunk in everything] == [(4, 640, 60), (4, 640, 60), (3, 640, 60)]
    later = list(batches(seed=1, done=4))
    assert all(torch.equal(a, b) for a, b in zip(everything[1:], later, strict=True))
    assert not torch.equal(everything[0], everything[1])
    assert not torch.equal(everything[0], next(iter(batches(seed=2))))
    assert not torch.equal(everything[0], next(iter(batches(seed=1, index=1))))
    assert bool((everything[0][0, 500:].unsqueeze(1) == data.z).all(-1).any(-1).all())  # each is a frame


def test_frames_are_drawn_as_often_as_their_weights_say() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0]).double()
    data = Encoded(small().coordinates, frames()[:4], weights)
    batch = data.draw(4000, torch.Generator().manual_seed(0))
    counts = [int((batch == row).all(-1).sum()) for row in data.z]
    assert counts[0] == counts[3] == 0 and sum(counts) == 4000
    assert counts[2] == pytest.approx(3000, abs=4.5 * math.sqrt(4000 * 0.75 * 0.25))


def test_likelihood_training_needs_frames() -> None:
    with pytest.raises(ArgumentError, match="`frames` must be given"):
        module.Training(small(), None, Schedule(PHASES))


def test_training_from_methods() -> None:
    generator = small()
    run = generator.fit_likelihood(frames(), steps=30, batch=64, merge_every=5, seed=3)
    assert run.finished and run.schedule.merge_every == 5 and run.schedule.seed == 3
    assert run.lines[-1]["merged"] == 12 and run.evaluations == 0
    run = generator.fit_energy(frames(), steps=4, samples=32, batch=16)
    assert run.evaluations == 128 and run.points == 4 * 48
    run = generator.fit_forces(frames(), steps=6, samples=16, batch=8, merge_every=3)
    assert (
        run.evaluations == run.schedule.evaluations == 6 * 16 and run.points == 6 * 24 and run.lines[-1]["merged"] == 4
    )
    with pytest.raises(ArgumentError, match="`x`"):
        generator.fit_likelihood(frames()[:, :10], steps=3)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Phase(-1), "steps"),
        (lambda: Phase(True), "steps"),
        (lambda: Phase(10, frames=0), "frames"),
        (lambda: Phase(10, samples=1.5), "samples"),  # type: ignore[arg-type]
        (lambda: Phase(10, forces=True), "samples"),
        (lambda: Phase(10, learning_rate=0.0), "learning_rate"),
        (lambda: Phase(10, likelihood=math.nan), "likelihood"),
        (lambda: Schedule((Phase(10),), merge_every=0), "merge_every"),
        (lambda: Schedule((Phase(10),), perturbation_rate=0.0), "perturbation_rate"),
        (lambda: Schedule((Phase(10),), clip=0.0), "clip"),
        (lambda: Schedule((Phase(10),), clip=math.nan), "clip"),
    ],
)
def test_bad_settings_are_refused_by_name(make: Callable[[], object], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}` must be"):
        make()


def test_progress_has_a_few_words(tmp_path: Path) -> None:
    said: list[Progress] = []
    run = training(small(), report=lambda made: bool(said.append(made)), level=(-20.0, 30.0))
    assert run.fit()
    assert said[0].step == 2560 and said[0].note.startswith("loss ")
    assert "ESS" in said[-1].note and "18 merged, 0 skipped" in said[-1].note


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


def test_samples_without_a_finite_energy_are_counted_and_add_nothing(tmp_path: Path) -> None:
    generator = small()
    true = generator.potential.unregularised
    generator.potential.unregularised = lambda x: true(x) * torch.where(torch.arange(len(x)) < 2, math.nan, 1.0)
    assert training(generator, tmp_path, schedule=Schedule((Phase(20, 0, 16, forces=True),))).fit()
    last = lines(tmp_path)[-1]
    assert (last["steps_left_out"], last["energies_left_out"]) == (0, 40)
    assert all(bool(value.isfinite().all()) for value in generator.parameters())


def test_a_hundred_broken_steps_in_a_row_end_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small("rnvp")
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    breaking(generator, lambda call: True, monkeypatch)
    run = training(generator, tmp_path, schedule=Schedule((Phase(300, 8, 8),)))
    with pytest.raises(P4Error, match="100 steps in a row had gradients that are not finite, up to step 100"):
        run.fit()
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    generator = small("rnvp")
    breaking(generator, lambda call: call % 100 != 0, monkeypatch)  # never 100 in a row
    run = training(generator, tmp_path, schedule=Schedule((Phase(200, 8, 8),)))
    assert run.fit() and run.left_out == 198


def test_counts_are_kept_where_a_training_is_stopped_between_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = Schedule((Phase(12, frames=256, samples=256),))

    def run(stop: int) -> module.Training:
        generator = small()
        breaking(generator, lambda call: call in (1, 2), monkeypatch)
        true = generator.potential.unregularised
        generator.potential.unregularised = lambda x: torch.where(torch.arange(len(x)) == 3, math.nan, true(x))
        result = training(generator, tmp_path, schedule=phases, resume=True, report=lambda made: made.step >= stop)
        result.fit()
        return result

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
