"""Tasks a to d: the defaults against one peer, at given rates, for a given number of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from examples.recurrent_tasks import Copying

from benchmarks.arrival.cells import Cell, Request, Task
from benchmarks.arrival.problems import Flip, Points, Problem, Recurrent
from benchmarks.arrival.table import grouped, markdown, middle, number, refused
from benchmarks.arrival.training import Record, train
from benchmarks.arrival.ways import CAYLEY, PLAIN, Way, ours


@dataclass(frozen=True)
class Comparison:
    """`kind` of p4torch against `peer`, for every rate and seed."""

    title: str
    kind: str
    peer: Way
    problem: Callable[[int], Problem]
    steps: int
    rates: tuple[float, ...]
    #: About, of a step of both.
    step_seconds: float

    def cells(self, request: Request) -> list[Cell]:
        ways, steps = request.among([ours(self.kind, request.options), self.peer]), request.steps(self.steps)
        return [
            Cell(
                f"rate {rate:g}, seed {seed}",
                self.step_seconds * steps,
                partial(self._run, ways, rate, seed, steps),
            )
            for rate in self.rates
            for seed in request.seeds
        ]

    def _run(self, ways: Sequence[Way], rate: float, seed: int, steps: int, _: Sequence[Record]) -> list[Record]:
        records = train(self.problem(seed), dict.fromkeys(ways, rate), steps)
        return [{**record, "seed": seed} for record in records]

    def task(self) -> Task:
        return Task(self.title, self.cells, table)


def table(records: Sequence[Record]) -> str:
    """One line for each way and rate."""
    head = ("way", "rate", "steps", "loss after a tenth", "loss", "CPU seconds", "merges refused")
    rows = []
    for (way, rate), same in grouped(records, "way", "rate").items():
        values = [middle(same, key) for key in ("early", "loss")]
        rows.append([way, f"{rate:g}", number(same[0].get("steps")), *values, middle(same, "seconds"), refused(same)])
    return markdown(head, rows)


COMPARISONS = {
    "a": Comparison(
        "The README's first example: x reversed, n = 64, batch 256",
        "Invertible",
        PLAIN,
        lambda seed: Flip(64, seed),
        steps=2000,
        rates=(1e-2,),
        step_seconds=1e-3,
    ),
    "b": Comparison(
        "Copying 10 symbols over a delay of 30, recurrent network of 128 units, batch 32 (loss without memory: "
        f"{Copying(30).baseline:.3f})",
        "Orthogonal",
        CAYLEY,
        lambda seed: Recurrent(seed, Copying(30)),
        steps=1000,
        rates=(1e-2, 1e-3),
        step_seconds=3e-2,
    ),
    "c": Comparison(
        "A rotation from 30 points, n = 500, summed squares",
        "Orthogonal",
        CAYLEY,
        lambda seed: Points(500, seed),
        steps=2000,
        rates=(1e-2, 1e-3, 1e-4),
        step_seconds=5e-2,
    ),
    "d": Comparison(
        "x reversed, n = 512, batch 256, from a matrix of determinant 1",
        "UnitDeterminant",
        PLAIN,
        lambda seed: Flip(512, seed, unit_determinant=True),
        steps=500,
        rates=(1e-2,),
        step_seconds=2e-2,
    ),
}
