"""Task f: steps and seconds to a rotation, each way at its own best learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.arrival.cells import Cell, Request, Task, cost
from benchmarks.arrival.problems import Teacher
from benchmarks.arrival.table import grouped, markdown, median, middle, refused
from benchmarks.arrival.training import Record, train
from benchmarks.arrival.ways import CAYLEY, PLAIN, Way, ours

SIZES = (64, 128)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.5e-1, 3e-1)
STEPS = 3000
#: |W - T|²_F / n at the end.
GOAL = 1e-5
#: Rates are chosen on a seed of their own.
TUNE_SEED = 100


def cells(request: Request) -> list[Cell]:
    ways = request.among([PLAIN, ours("Orthogonal", request.options), CAYLEY])
    steps = request.steps(STEPS)
    made = []
    for n in request.sizes or SIZES:
        about = cost(n, len(ways), steps)
        made += [Cell(f"SO({n}), rate {rate:g}", about, partial(_tune, ways, n, rate, steps)) for rate in RATES]
        made += [
            Cell(f"SO({n}), best rates, seed {seed}", about / 5, partial(_final, ways, n, seed, steps))
            for seed in request.seeds
        ]
    return made


def _tune(ways: Sequence[Way], n: int, rate: float, steps: int, _: Sequence[Record]) -> list[Record]:
    return _run("tune", dict.fromkeys(ways, rate), n, TUNE_SEED, steps)


def _final(ways: Sequence[Way], n: int, seed: int, steps: int, before: Sequence[Record]) -> list[Record]:
    tuned = [record for record in before if record["stage"] == "tune" and record["n"] == n]
    rates = {way: best_rate([record for record in tuned if record["way"] == way.name]) for way in ways}
    return _run("final", rates, n, seed, steps)


def _run(stage: str, rates: dict[Way, float], n: int, seed: int, steps: int) -> list[Record]:
    problem = Teacher(n, seed, start="identity")
    records = train(problem, rates, steps, lambda model: problem.distance(model) < GOAL)
    return [{**record, "stage": stage, "n": n, "seed": seed} for record in records]


def best_rate(tuned: Sequence[Record]) -> float:
    """The one that arrives in the fewest steps; if none does, that of the least loss."""

    def order(record: Record) -> tuple[bool, float]:
        if record.get("arrived"):
            return False, record["steps"]
        return True, median([record], "loss")

    return float(min(tuned, key=order)["rate"])


def table(records: Sequence[Record]) -> str:
    """One line for each size and way, relative to the plain matrix; below, the steps at every rate."""
    head = ("n", "way", "best rate", "steps", "of plain", "CPU seconds", "of plain", "arrived", "merges refused")
    final = [record for record in records if record["stage"] == "final"]
    rows = []
    for (n, way), same in grouped(final, "n", "way").items():
        plain = [record for record in final if record["n"] == n and record["way"] == PLAIN.name]
        arrived = f"{sum(bool(record.get('arrived')) for record in same)} of {len(same)}"
        steps, seconds = ((middle(same, key), _ratio(same, plain, key)) for key in ("steps", "seconds"))
        rows.append([str(n), way, f"{same[0]['rate']:g}", *steps, *seconds, arrived, refused(same)])
    return markdown(head, rows) + "\nSteps at every rate, for choosing it:\n\n" + _tuning(records)


def _ratio(same: Sequence[Record], plain: Sequence[Record], key: str) -> str:
    if not plain or not all(record.get("arrived") for record in (*same, *plain)):
        return "-"
    return f"{median(same, key) / median(plain, key):.2f}"


def _tuning(records: Sequence[Record]) -> str:
    tuned = [record for record in records if record["stage"] == "tune"]
    rates = sorted({record["rate"] for record in tuned})
    rows = []
    for (n, way), same in grouped(tuned, "n", "way").items():
        by_rate = {record["rate"]: record for record in same}
        rows.append([str(n), way, *(_steps(by_rate.get(rate, {})) for rate in rates)])
    return markdown(("n", "way", *(f"{rate:g}" for rate in rates)), rows)


def _steps(record: Record) -> str:
    if "steps" not in record:
        return str(record.get("reason", "-"))
    return f"{record['steps']}" if record["arrived"] else f"> {record['steps']}"


TASK = Task(
    f"Steps and seconds from I to a rotation, |W - T|²_F / n < {GOAL:g}, batches of 256, each way at its best rate",
    cells,
    table,
)
