"""What merges cost: one of them against a training step, and the slowest step of a staggered schedule."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import p4torch as p4
from benchmarks import layers
from benchmarks.families.linear import PROPERTIES, step
from benchmarks.measure import Effort, Side, threads
from benchmarks.rows import Job, Row, compare, gathered
from p4torch.runs.provenance import cores

FEATURES = 1024
BARRED = ("Invertible", "Orthogonal")
SITES, EVERY, CORRECT_EVERY, STEPS, REPETITIONS = 4, 12, 5, 120, 5


def jobs() -> list[Job]:
    """Merges of every property, and schedules of the two that correct."""
    merges = [Job("merges", f"{property}-{FEATURES}", partial(_merges, property), cost=10) for property in PROPERTIES]
    schedules = [Job("merges", f"stagger-{property}", partial(_schedules, property), cost=90) for property in BARRED]
    return merges + schedules


# --- one merge ------------------------------------------------------------------------------------------------


def merge(property: str, features: int, rank: int) -> Side:
    """A merge of a small, fresh perturbation. Raises RuntimeError where it is skipped."""
    layer = layers.perturbed(property, features, rank)
    site = next(p4.sites(layer))

    def call() -> None:
        report = site.merge()
        if not report.ok:
            raise RuntimeError(f"a merge was skipped: {report.reason}")

    return Side(call, prepare=lambda: layers.nudge(layer))


def _merges(property: str, effort: Effort) -> list[Row]:
    builders: dict[str, Callable[[], Side]] = {}
    for rank in (1, 4):
        builders[f"merge rank {rank}"] = partial(merge, property, FEATURES, rank)
        builders[f"training step rank {rank}"] = partial(step, property, FEATURES, rank)
    timed = compare(builders, effort, cores(), features=FEATURES, batch=layers.BATCH)
    bar = "merge" if property in BARRED else None
    return [
        timed.row(
            f"{property}, merge, n = {FEATURES}, rank {rank}",
            f"merge rank {rank}",
            f"training step rank {rank}",
            bar=bar,
        )
        for rank in (1, 4)
    ]


# --- a schedule -----------------------------------------------------------------------------------------------


def schedule_times(model: nn.Module, features: int, steps: int, *, every: int, stagger: bool) -> list[float]:
    """Seconds of each step (forward, backward, optimizer, scheduler) of a copy of the model, from its start."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-4)
    scheduler = p4.MergeScheduler(model, optimizer, every=every, correct_every=CORRECT_EVERY, stagger=stagger)
    generator = torch.Generator().manual_seed(2)
    x, target = (torch.randn(layers.BATCH, features, generator=generator) for _ in range(2))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
        scheduler.step()
        times.append(time.perf_counter() - start)
    return times


def slowest_over_median(runs: list[list[float]], skip: int) -> tuple[float, list[float]]:
    """Steps do the same in every run: the median over runs takes the noise away from each one of them, then the
    slowest is compared with the median step. The first `skip` steps warm up."""
    steps = [statistics.median(times) for times in zip(*runs, strict=True)][skip:]
    return max(steps) / statistics.median(steps), steps


def _schedules(property: str, effort: Effort) -> list[Row]:
    sides = {"with stagger": True, "without stagger": False}
    model, reason, failed = gathered("p4torch", lambda: _model(property))
    rows = []
    for sides_name, stagger in sides.items():
        name, bar = f"{property}, schedule {sides_name}, n = {FEATURES}", "stagger" if stagger else None
        if model is None:
            rows.append(Row(name, "slowest / median step", bar=bar, reason=reason, failed=failed))
            continue
        repetitions = max(3, min(REPETITIONS, effort.rounds)) if stagger else 2
        with threads(cores()):
            runs = [schedule_times(model, FEATURES, STEPS, every=EVERY, stagger=stagger) for _ in range(repetitions)]
        ratio, steps = slowest_over_median(runs, skip=EVERY)
        each = [slowest_over_median([run], skip=EVERY)[0] for run in runs]
        facts = {
            "sites": SITES,
            "every": EVERY,
            "correct_every": CORRECT_EVERY,
            "repetitions": repetitions,
            "batch": layers.BATCH,
            "threads": cores(),
            "milliseconds_of_steps": [round(1e3 * value, 3) for value in steps],
        }
        rows.append(Row(name, "slowest / median step", ratio, (min(each), max(each)), bar, facts=facts))
    return rows


def _model(property: str) -> nn.Module:
    return nn.Sequential(*(layers.perturbed(property, FEATURES, 1) for _ in range(SITES)))
