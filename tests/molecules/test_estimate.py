"""What a run will cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.molecules.systems import system_of

from p4torch.molecules import ParallelTempering, TorsionFlattening, estimate
from p4torch.molecules.estimate import COPIES, RECORD, Cost, in_turns, process_bytes, simulation_cost
from p4torch.molecules.simulation.ladder import Ladder
from p4torch.molecules.simulation.method import Method
from p4torch.molecules.simulation.parts import Adaptation, Walker

METHODS: tuple[Method, ...] = (TorsionFlattening(walkers=3, nanoseconds=0.5), ParallelTempering(ladders=3, replicas=4))


@pytest.mark.parametrize(
    ("lengths", "workers", "length"),
    [((5, 5, 5, 5), 2, 10), ((5, 5, 5), 2, 10), ((5, 5), 8, 5), ((1, 1, 7), 2, 8), ((), 3, 0), ((4,), 1, 4)],
)
def test_jobs_take_turns(lengths: tuple[int, ...], workers: int, length: int) -> None:
    assert in_turns(lengths, workers) == length


class Told(Exception):
    """Ends a simulation before it has begun."""


def first_parts(method: Method, folder: Path) -> list[Any]:
    """The parts that a method would simulate first."""
    taken: list[Any] = []

    def take(parts: Any) -> Any:
        taken.extend(parts)
        raise Told

    with pytest.raises(Told):
        method.run(system_of(), folder, take)
    return taken


def test_stages_are_the_steps_that_are_simulated(tmp_path: Path) -> None:
    biased, tempered = METHODS
    adapters = first_parts(biased, tmp_path)
    assert all(isinstance(part, Adaptation) for part in adapters)
    assert [part.steps for part in adapters] == list(biased.stages[0])
    (tmp_path / "bias.json").write_text('{"kept": [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]}')
    walkers = first_parts(biased, tmp_path)
    assert all(isinstance(part, Walker) for part in walkers)
    assert [part.steps for part in walkers] == list(biased.stages[1])
    ladders = first_parts(tempered, tmp_path)
    assert all(isinstance(part, Ladder) for part in ladders)
    assert [part.steps * 4 for part in ladders] == list(tempered.stages[0])


@pytest.mark.parametrize("method", METHODS)
def test_cost_follows_from_rate_and_frames(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "steps_per_second", lambda system, method: 1000.0)
    monkeypatch.setattr(estimate, "process_bytes", lambda: 5e8)
    one, two = (simulation_cost(system_of(), method, workers) for workers in (1, 2))
    frames = method.records * (12 * 22 + RECORD)
    assert one.seconds == pytest.approx(sum(map(sum, method.stages)) / 1000)
    assert one.seconds / 2 <= two.seconds < one.seconds
    assert one.memory == 2 * 5e8 + COPIES * frames and two.memory == 3 * 5e8 + COPIES * frames
    assert one.disk == 2 * frames


def test_costs_add_up_and_are_told_in_words() -> None:
    both = Cost(600.0, 2e9, 3e8, 2) + Cost(120.0, 4e9, 1e8, 1)
    assert both == Cost(720.0, 4e9, 4e8, 2)
    assert both.text == "about 12 min with 2 processes, 4.0 GB of memory, 400 MB of disk"
    assert Cost(20.0, math.nan, 0.0, 1).text == "about 20 s with 1 process, an unknown amount of memory, 0 MB of disk"


def test_dynamics_is_measured() -> None:
    assert 10 < estimate.steps_per_second(system_of(), METHODS[0]) < 1e7
    assert 5e7 < process_bytes() < 1e12
