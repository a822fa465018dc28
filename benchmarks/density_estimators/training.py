"""Training for so many steps, alike for all: Adam, one rate, the checkpoint that is best on validation points."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import p4torch as p4
from benchmarks.density_estimators.problems import Problem
from benchmarks.layers import Missing

#: Steps of a way in a round of times.
ROUND = 5
#: Points whose log-densities are computed at once.
CHUNK = 1_000


@dataclass(frozen=True)
class Plan:
    """How a training goes."""

    steps: int = 300
    rate: float = 1e-3
    #: Steps between looks at the validation points.
    look: int = 25
    #: Steps between merges of perturbed layers.
    every: int = 50


class Training:
    """A density estimator and its optimizer; merges of perturbed layers belong to a step."""

    def __init__(self, build: Callable[[Tensor, int], nn.Module], problem: Problem, seed: int, plan: Plan) -> None:
        torch.manual_seed(seed)
        self.problem, self.seed = problem, seed
        self.model = build(problem.held_out("training")[0], problem.context_features)
        self.optimizer = torch.optim.Adam(p4.parameter_groups(self.model), lr=plan.rate)
        perturbed = next(iter(p4.sites(self.model)), None) is not None
        self.merges = p4.MergeScheduler(self.model, self.optimizer, every=plan.every) if perturbed else None
        self.count = 0

    def step(self) -> float:
        """One step; the CPU seconds that it took, without those of the batch."""
        batch = self.problem.batch(self.seed, self.count)
        start = time.process_time()
        self.optimizer.zero_grad()
        loss = -self.model(*batch).mean()
        loss.backward()
        self.optimizer.step()
        if self.merges is not None:
            self.merges.step()
        self.count += 1
        return time.process_time() - start

    @torch.no_grad()
    def log_likelihood(self, name: str) -> float:
        """Mean log-density of held-out points, in nats."""
        parts = [part.split(CHUNK) for part in self.problem.held_out(name)]
        return float(torch.cat([self.model(*chunk) for chunk in zip(*parts, strict=True)]).double().mean())


def times(
    ways: Mapping[str, Callable[[Tensor, int], nn.Module]], problem: Problem, plan: Plan, rounds: int
) -> dict[str, Any]:
    """Mean CPU seconds of a step in each round, by way; the ways take turns. Those of missing packages are left out."""
    trainings: dict[str, Training] = {}
    for name, build in ways.items():
        with suppress(Missing):
            trainings[name] = Training(build, problem, 0, plan)
    for training in trainings.values():
        training.step()
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for index in range(rounds):
        for name in list(trainings)[:: -1 if index % 2 else 1]:
            steps = [trainings[name].step() for _ in range(ROUND)]
            seconds[name].append(sum(steps) / ROUND)
    return {"seconds": seconds}


def train(build: Callable[[Tensor, int], nn.Module], problem: Problem, seed: int, plan: Plan) -> dict[str, Any]:
    """The test log-likelihood of the checkpoint that was best on validation points, and where that was."""
    training = Training(build, problem, seed, plan)
    best, best_step, seconds = training.log_likelihood("validation"), 0, 0.0
    state = copy.deepcopy(training.model.state_dict())
    for step in range(1, plan.steps + 1):
        seconds += training.step()
        if step % plan.look == 0 or step == plan.steps:
            value = training.log_likelihood("validation")
            if value > best:
                best, best_step, state = value, step, copy.deepcopy(training.model.state_dict())
    last = training.log_likelihood("test")
    training.model.load_state_dict(state)
    parameters = sum(value.numel() for value in training.model.parameters() if value.requires_grad)
    return {
        "seed": seed,
        "plan": asdict(plan),
        "test": training.log_likelihood("test"),
        "test_last": last,
        "validation": best,
        "best_step": best_step,
        "cpu_seconds": seconds,
        "parameters": parameters,
    }
