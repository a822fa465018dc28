"""Trainings that take turns, and what is recorded of them."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from examples.scaffold import Stopwatch
from torch import nn

import p4torch as p4
from benchmarks.arrival.problems import Problem
from benchmarks.arrival.ways import Way
from p4torch.errors import P4Error

Record = dict[str, Any]
#: From a model to whether training may stop.
Reached = Callable[[nn.Module], bool]

#: Steps of a turn: what disturbs the machine hits all ways alike.
TURN = 10
#: Points of a recorded curve. Each is a mean over a hundredth of all steps.
POINTS = 20


class Training:
    """A problem learned in one way, by Adam with one rate for everything. Seconds are CPU seconds of the steps alone:
    forward, backward, optimizer and merges, but no data."""

    def __init__(self, problem: Problem, way: Way, rate: float, reached: Reached | None = None) -> None:
        self.problem, self.way, self.rate, self.reached = problem, way, rate, reached
        self.model = problem.model()
        way.constrain(self.model, problem.tensor)
        groups: Any = p4.parameter_groups(self.model) if way.ours else self.model.parameters()
        self.optimizer = torch.optim.Adam(groups, lr=rate)
        self.trained = [value for group in self.optimizer.param_groups for value in group["params"]]
        self.scheduler = p4.MergeScheduler(self.model, self.optimizer, **way.schedule) if way.ours else None
        self.watch, self.losses = Stopwatch(), list[float]()
        self.arrived = False

    def advance(self) -> None:
        """One step."""
        batch = self.problem.batch(len(self.losses))
        with self.watch:
            loss = self.problem.loss(self.model, batch)
            self.optimizer.zero_grad()
            loss.backward()
            if self.problem.clip is not None:
                nn.utils.clip_grad_norm_(self.trained, self.problem.clip)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        self.losses.append(loss.item())
        self.arrived = self.reached is not None and self.reached(self.model)

    def record(self) -> Record:
        """What metrics.json keeps."""
        steps = len(self.losses)
        marks = sorted({math.ceil(steps * (index + 1) / POINTS) for index in range(POINTS)})
        return {
            "way": self.way.name,
            "rate": self.rate,
            "steps": steps,
            "seconds": self.watch.seconds,
            "loss": mean_loss(self.losses, steps),
            "early": mean_loss(self.losses, math.ceil(steps / 10)),
            "curve": [(mark, mean_loss(self.losses, mark)) for mark in marks],
            "arrived": self.arrived,
            "merged": self.scheduler.merged if self.scheduler else None,
            "skipped": self.scheduler.skipped if self.scheduler else None,
        }


def mean_loss(losses: Sequence[float], step: int) -> float:
    """The mean of the last hundredth of all steps (at least one) until a step; infinite where it is no number."""
    if step < 1:
        return math.inf
    value = statistics.fmean(losses[max(0, step - max(1, len(losses) // 100)) : step])
    return value if math.isfinite(value) else math.inf


def train(problem: Problem, ways: dict[Way, float], steps: int, reached: Reached | None = None) -> list[Record]:
    """Records of all ways, trained in turns from the same start on the same batches. `ways` holds their rates.

    One that cannot be built, or fails on its way, has a record with the reason.
    """
    records: dict[Way, Record] = {}
    running: dict[Way, Training] = {}
    with _quiet():
        for way, rate in ways.items():
            try:
                running[way] = Training(problem, way, rate, reached)
            except (TypeError, P4Error) as error:
                records[way] = _failure(way, rate, error)
        while running:
            for way, training in list(running.items()):
                try:
                    if _turn(training, steps):
                        records[way] = running.pop(way).record()
                except (P4Error, RuntimeError) as error:  # a peer's solve of what is not finite
                    records[way] = _failure(way, running.pop(way).rate, error)
    return [records[way] for way in ways]


def _turn(training: Training, steps: int) -> bool:
    """A few steps; whether the training is over."""
    for _ in range(TURN):
        if training.arrived or len(training.losses) >= steps:
            return True
        training.advance()
    return False


def _failure(way: Way, rate: float, error: Exception) -> Record:
    return {"way": way.name, "rate": rate, "reason": f"{type(error).__name__}: {error}"}


@contextmanager
def _quiet() -> Iterator[None]:
    """One thread, no denormal numbers (they took up to a third of a trained recurrent network's step), no warnings of
    projections and recoveries: what they are about is in the losses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
