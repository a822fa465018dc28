"""Times of several sides, measured alternately in one process: on a noisy machine only such ratios mean anything."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Seconds = dict[str, list[float]]


def nothing() -> None:
    """What most sides have to prepare."""


@dataclass(frozen=True)
class Side:
    """One of the things compared. `prepare` runs before each call and is not timed."""

    call: Callable[[], object]
    prepare: Callable[[], object] = nothing


@dataclass(frozen=True)
class Effort:
    """How long to measure: `rounds`, fewer (but at least `least`) once `seconds` are over.

    In a round every side is called in turn, again and again for at least `block` seconds.
    """

    rounds: int = 31
    seconds: float = 20.0
    least: int = 5
    block: float = 0.005


def alternate(sides: dict[str, Side], effort: Effort) -> Seconds:
    """Seconds per call in each round, by side. Every second round goes through the sides backwards."""
    for side in sides.values():
        side.prepare()
        side.call()
    times: Seconds = {name: [] for name in sides}
    start = time.perf_counter()
    with _no_garbage_collection():
        for index in range(effort.rounds):
            if index >= effort.least and time.perf_counter() - start > effort.seconds:
                break
            for name in list(sides)[:: -1 if index % 2 else 1]:
                times[name].append(_block(sides[name], effort.block))
    return times


def _block(side: Side, least: float) -> float:
    spent, calls = 0.0, 0
    while spent < least or not calls:
        side.prepare()
        start = time.perf_counter()
        side.call()
        spent += time.perf_counter() - start
        calls += 1
    return spent / calls


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """25 %, median, 75 %."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio_of(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The ratio of medians, and the quartiles of the ratios of neighbours in time."""
    low, _, high = quartiles([a / b for a, b in zip(top, bottom, strict=True)])
    return statistics.median(top) / statistics.median(bottom), (low, high)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """A number of threads inside torch's operations, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
