"""Task g: what a training step and a merge cost, against the plain layer, alternately."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

import p4torch as p4
from benchmarks import layers
from benchmarks.arrival.cells import Cell, Request, Task
from benchmarks.arrival.table import markdown, number
from benchmarks.arrival.training import Record
from benchmarks.arrival.ways import PLAIN, Options, Way, ours
from benchmarks.measure import Effort, Side, ratio_of
from benchmarks.rows import Comparison, compare

SIZES, BATCHES = (512, 1024, 2048), (256, 2048)
EFFORT = Effort(rounds=21, seconds=30.0, block=0.02)
STEP, MERGE, PLAIN_STEP = "step", "merge", "plain step"


def cells(request: Request) -> list[Cell]:
    """The two sides are measured alternately: none runs alone."""
    way = ours("Orthogonal", request.options)
    rounds = min(EFFORT.rounds, request.steps(EFFORT.rounds))
    effort = Effort(rounds, EFFORT.seconds, min(EFFORT.least, rounds), EFFORT.block)
    if len(request.among([way, PLAIN])) < 2:
        return []
    return [
        Cell(f"n = {n}, batch {batch}", EFFORT.seconds, partial(_run, way, request.options, n, batch, effort))
        for n in request.sizes or SIZES
        for batch in BATCHES
    ]


def _run(way: Way, options: Options, n: int, batch: int, effort: Effort, _: Sequence[Record]) -> list[Record]:
    builders: dict[str, Callable[[], Side]] = {
        STEP: partial(_step, way, n, batch),
        MERGE: partial(merge, way, n, batch),
        PLAIN_STEP: lambda: Side(layers.training_step(plain := layers.plain(n), plain, n, batch)),
    }
    timed = compare(builders, effort, 1)
    every = int(options.schedule.get("every", _default_interval()))
    return [{"n": n, "batch": batch, "way": way.name, "every": every, **_ratios(timed, every)}]


def _ratios(timed: Comparison, every: int) -> Record:
    if timed.absent:
        return {"reason": "; ".join(reason for reason, _ in timed.absent.values())}
    times = timed.times
    step, spread = ratio_of(times[STEP], times[PLAIN_STEP])
    merged, merge_spread = ratio_of(times[MERGE], times[STEP])
    return {
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in times.items()},
        "step": step,
        "step_quartiles": spread,
        "merge_in_steps": merged,
        "merge_quartiles": merge_spread,
        "with_merges": step * (1 + merged / every),
        "rounds": len(times[STEP]),
    }


def _layer(way: Way, n: int) -> nn.Linear:
    layer = layers.plain(n)
    way.constrain(layer, "weight")
    layers.nudge(layer)
    return layer


def _step(way: Way, n: int, batch: int) -> Side:
    layer = _layer(way, n)
    return Side(layers.training_step(layer, layer, n, batch))


def merge(way: Way, n: int, batch: int) -> Side:
    """A merge with everything that comes with it (new directions, the optimizer's memory), after a step that is not
    timed. Raises RuntimeError where it is refused."""
    layer = _layer(way, n)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-4)
    schedule: dict[str, Any] = {**way.schedule, "every": 1, "rewarm": 0}
    scheduler = p4.MergeScheduler(layer, optimizer, **schedule)
    step = layers.training_step(layer, layer, n, batch)

    def prepare() -> None:
        step()
        optimizer.step()

    def call() -> None:
        (report,) = scheduler.step()
        if not report.ok:
            raise RuntimeError(f"a merge was refused: {report.reason}")

    return Side(call, prepare)


def _default_interval() -> int:
    return p4.Perturbation.interval


def table(records: Sequence[Record]) -> str:
    """One line for each size and batch."""
    head = ("n", "batch", "way", "step / plain step", "merge / step", "every", "step with merges / plain step")
    rows = []
    for record in records:
        shown = [record["reason"], "-", "-", "-"] if "reason" in record else _cells(record)
        rows.append([str(record["n"]), str(record["batch"]), record["way"], *shown])
    return markdown(head, rows)


def _cells(record: Record) -> list[str]:
    step, merged = (
        f"{number(record[key])} ({number(record[quartiles][0])} to {number(record[quartiles][1])})"
        for key, quartiles in (("step", "step_quartiles"), ("merge_in_steps", "merge_quartiles"))
    )
    return [step, merged, str(record["every"]), number(record["with_merges"])]


TASK = Task(
    "Cost of a training step (forward and backward, with the gradient of the input) and of a merge; medians of "
    "alternating rounds, quartiles in brackets",
    cells,
    table,
)
