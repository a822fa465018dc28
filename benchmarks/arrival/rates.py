"""Task e: which learning rate is best, and whether it depends on the size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial

from benchmarks.arrival.cells import Cell, Request, Task, cost
from benchmarks.arrival.problems import Teacher
from benchmarks.arrival.table import grouped, markdown, median, number
from benchmarks.arrival.training import Record, train
from benchmarks.arrival.ways import PLAIN, Options, Way, accepted, ours

KINDS = ("LowRankUpdate", "Orthogonal", "Invertible")
#: Tried where no options are given; a property that lacks one goes without it.
SHAPES = (Options(), Options({"rank": 8}), Options({"block": 32}), Options({"block": "all"}))
SIZES = (32, 128, 512, 1024)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STEPS = 300
#: Below this, losses are equal: rounding decides among them.
FLOOR = 1e-8

#: The best rate may change by this much over all sizes: one step of the grid, which is 3 or 10/3.
BAR = 10 / 3
TITLE = "Mean squared error after {steps} steps at every learning rate, and the best rate (batches of 256 normal rows)"


def ways(options: Options) -> list[Way]:
    """The plain layer, and every property in every shape that it has; or with the given options alone."""
    if str(options) != "defaults":
        return [PLAIN, *(ours(kind, options) for kind in KINDS)]
    return [PLAIN, *(ours(kind, shape) for kind in KINDS for shape in SHAPES if accepted(kind, shape, min(SIZES)))]


def cells(request: Request) -> list[Cell]:
    chosen, steps = request.among(ways(request.options)), request.steps(STEPS)
    return [
        Cell(
            f"target {target}, n = {n}, rate {rate:g}, seed {seed}",
            cost(n, len(chosen), steps),
            partial(_run, chosen, target, n, rate, seed, steps),
        )
        for target in ("rotation", "update")
        for n in request.sizes or SIZES
        for rate in RATES
        for seed in request.seeds
    ]


def _run(
    chosen: Sequence[Way], target: str, n: int, rate: float, seed: int, steps: int, _: Sequence[Record]
) -> list[Record]:
    """An updated rotation is not orthogonal: that is no target for `Orthogonal`."""
    able = [way for way in chosen if target == "rotation" or way.kind != "Orthogonal"]
    records = train(Teacher(n, seed, target=target), dict.fromkeys(able, rate), steps)  # type: ignore[arg-type]
    return [{**record, "target": target, "n": n, "seed": seed} for record in records]


def table(records: Sequence[Record]) -> str:
    """For each target a line for each way and size, the best rates beside them."""
    text = f"The best rate has the least loss; among losses below {FLOOR:g} it is the first to get there.\n\n"
    for (target,), these in grouped(records, "target").items():
        rates = sorted({record["rate"] for record in these})
        head = ("way", "n", *(f"{rate:g}" for rate in rates), "best rate", "changes by")
        rows = []
        for (way,), same in grouped(these, "way").items():
            lines = {n: grouped(group, "rate") for (n,), group in grouped(same, "n").items()}
            best = {n: best_rate(by_rate) for n, by_rate in lines.items()}
            for n, by_rate in lines.items():
                losses = [number(median(by_rate[(rate,)], "loss")) if (rate,) in by_rate else "-" for rate in rates]
                change = _change(list(best.values())) if n == max(lines) else ""
                rows.append([way, str(n), *losses, "-" if best[n] is None else f"{best[n]:g}", change])
        text += f"Target: {_TARGETS[target]}.\n\n{markdown(head, rows)}\n"
    return text.rstrip("\n") + "\n"


_TARGETS = {"rotation": "a random rotation", "update": "the start and a small update of rank 8 (loss 0.1 at the start)"}


def best_rate(by_rate: dict[tuple[float, ...], list[Record]]) -> float | None:
    """The one with the least median of losses; among those below `FLOOR`, the first to get there. None if no loss is
    finite."""
    losses = {rate: median(same, "loss") for (rate,), same in by_rate.items()}

    def order(rate: float) -> tuple[float, float]:
        return max(losses[rate], FLOOR), statistics.median(map(_arrival, by_rate[(rate,)]))

    best = min(losses, key=order)
    return best if math.isfinite(losses[best]) else None


def _arrival(record: Record) -> float:
    """The first step of the recorded curve with a loss below `FLOOR`."""
    marks = (step for step, loss in record.get("curve", ()) if loss is not None and loss < FLOOR)
    return float(next(marks, math.inf))


def _change(rates: Sequence[float | None]) -> str:
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates) or not known:
        return "-"
    factor = max(known) / min(known)
    return f"{factor:.1f}, bar {'met' if factor <= BAR * 1.001 else 'missed'}"


TASK = Task(TITLE.format(steps=STEPS), cells, table)
