"""What a step costs: all variants in turn, on one thread, in one process."""

from __future__ import annotations

import math
import statistics
import time

from experiments.patches.config import Config
from experiments.patches.data import patches
from experiments.patches.job import trainer
from experiments.patches.models import Variant

#: Merges that are further apart are left out of a turn: one of them costs about as much as two steps.
RARE = 500

#: Turns of every variant; the first one warms up.
ROUNDS = 5

_RATE = 1e-4  # times do not depend on it


def step_milliseconds(config: Config) -> dict[str, float]:
    """The median over turns of a step's wall time, merges included, by name of variant.

    In turn, so that a busy machine slows all; a turn holds whole merge intervals.
    """
    seed, times = config.seeds[0], {variant.name: list[float]() for variant in config.variants()}
    lengths = {variant.name: _turn(variant, config.clock_steps) for variant in config.variants()}
    batches = patches().batches(seed, 0, max(lengths.values()), config.batch)
    runs = {job.variant.name: trainer(job) for job in config.jobs(dict.fromkeys(times, _RATE)) if job.seed == seed}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.perf_counter()
            run.train(batches[: lengths[name]])
            times[name].append(1000 * (time.perf_counter() - started) / lengths[name])
    return {name: statistics.median(turns[1:]) for name, turns in times.items()}


def _turn(variant: Variant, least: int) -> int:
    if not variant.every or variant.every > RARE:
        return least
    return variant.every * math.ceil(least / variant.every)
