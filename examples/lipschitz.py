"""Lipschitz networks with defaults only: a classifier of digits and a Wasserstein critic of bound 1, by p4torch and by
what torch has, all with the same data in the same order and the same optimizer.

    python -m examples.lipschitz --out runs/lipschitz
    python -m examples.lipschitz --short --out runs/lipschitz-short    # seconds

Digits: scikit-learn's 8 x 8 images, a 64-64-64-10 network with ReLU, cross-entropy. Critic: a 32-64-1 network with ReLU
that tells N(0, I) from N(m, I) with |m| = 3 apart; the largest difference of its means is the Wasserstein distance, 3.
After each step the norms of all layers are computed by SVD in float64; the table has the largest product of a run. A
method that keeps its bound stays at 1 or below.

Source: Arjovsky, Chintala and Bottou (2017) for critics; Miyato, Kataoka, Koyama and Yoshida (2018), spectral
normalization.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import p4torch as p4
from examples.recurrent_tasks import digits
from examples.scaffold import Fit, Job, Row, run_setting, train
from p4torch.parametrize.sites import counter_based_generator
from p4torch.runs.runner import Results

MODULE = "examples.lipschitz"

#: |m|, the distance of the two distributions.
DISTANCE = 3.0
BOUND = 1.0


@dataclass(frozen=True)
class Setting:
    """The size of everything."""

    digits_steps: int = 1000
    critic_steps: int = 1000
    digits_batch: int = 64
    critic_batch: int = 256
    rate: float = 1e-3
    points: int = 100_000
    record: int = 100


SHORT = Setting(digits_steps=10, critic_steps=10, digits_batch=8, critic_batch=16, points=200, record=5)


def bounded(method: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Sequential], nn.Module]:
    """What a parametrization of torch makes of a network: every layer has the norm 1."""

    def wrap(network: nn.Sequential) -> nn.Module:
        for layer in linears(network):
            method(layer)
        return network

    return wrap


METHODS: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "p4.LipschitzNetwork": partial(p4.LipschitzNetwork, bound=BOUND),
    "p4.LipschitzNetwork, at='merge'": partial(p4.LipschitzNetwork, bound=BOUND, at="merge"),
    "torch spectral_norm": bounded(parametrizations.spectral_norm),
    "torch orthogonal": bounded(parametrizations.orthogonal),
}


def linears(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


def chain(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Task:
    """What is learned: a loss of pairs of tensors, the batch of a step, and the result, where higher is better."""

    name: str
    measure: str
    widths: tuple[int, ...]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def result(self, network: nn.Module) -> float:
        raise NotImplementedError


class Digits(Task):
    name, measure, widths = "digits", "accuracy", (64, 64, 64, 10)

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        x, y = digits()[0]
        generator = counter_based_generator(seed, self.name, step)
        chosen = torch.randint(len(y), (self.setting.digits_batch,), generator=generator)
        return x[:, chosen].mT, y[chosen]

    def loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(network(x), y)

    def result(self, network: nn.Module) -> float:
        x, y = digits()[1]
        return float((network(x.mT).argmax(-1) == y).double().mean())


class Critic(Task):
    name, measure, widths = "critic", "distance", (32, 64, 1)

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        generator = counter_based_generator(seed, self.name, step)
        x, y = torch.randn(2, self.setting.critic_batch, 32, generator=generator)
        return x, y + DISTANCE / 32**0.5

    def loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cast(Tensor, network(x).mean() - network(y).mean())

    def result(self, network: nn.Module) -> float:
        """On points that no run has seen: the mean over points and the same ones moved."""
        generator = counter_based_generator(0, "critic, held out", 0)
        x = torch.randn(self.setting.points, 32, generator=generator)
        return float((network(x + DISTANCE / 32**0.5) - network(x)).mean())


TASKS: dict[str, type[Task]] = {task.name: task for task in (Digits, Critic)}


class Trained(Fit):
    """One method on one task. `curve` holds (step, seconds, largest product of norms so far)."""

    def __init__(self, task: Task, method: str, seed: int) -> None:
        super().__init__()
        self.task, self.method, self.seed, self.largest = task, method, seed, 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = METHODS[method](chain(*task.widths))
        ours = isinstance(self.model, p4.LipschitzNetwork)
        parameters = p4.parameter_groups(self.model) if ours else self.model.parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=task.setting.rate)
        if ours:
            self.scheduler = p4.MergeScheduler(self.model, self.optimizer)

    @property
    def note(self) -> str:
        return f"product of norms at most {self.largest:.3f}"

    def advance(self) -> None:
        batch = self.task.batch(self.seed, self.step)
        self.update(lambda: self.task.loss(self.model, *batch))
        self.largest = max(self.largest, self.product())
        if self.step % self.task.setting.record == 0:
            self.curve.append((self.step, self.watch.seconds, self.largest))

    @torch.no_grad()
    def product(self) -> float:
        """Π ‖W‖₂ of what the network computes with, by SVD in float64. Torch's estimates stay as they are."""
        training = self.model.training
        self.model.eval()
        weights = [layer.weight.detach().double() for layer in linears(self.model)]
        self.model.train(training)
        return float(torch.stack([torch.linalg.matrix_norm(weight, ord=2) for weight in weights]).prod())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "largest": self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.largest = state["largest"]

    @torch.no_grad()
    def row(self) -> Row:
        self.model.eval()
        result = self.task.result(self.model)
        certified = float(self.model.lipschitz_bound()) if isinstance(self.model, p4.LipschitzNetwork) else None
        return {
            "task": self.task.name,
            "method": self.method,
            "seed": self.seed,
            "steps": self.step,
            self.task.measure: result,
            "largest_product": self.largest,
            "product": self.product(),
            "certified": certified,
            "seconds": self.watch.seconds,
            "curve": self.curve,
        }


def table(rows: Sequence[Row]) -> str:
    """Means over seeds, and the range of what was learned."""
    lines = [
        "| task | method | result | over seeds | largest product of norms at any step | certified | ms a step |",
        "| --- " * 7 + "|",
    ]
    for task in TASKS.values():
        for method in METHODS:
            same = [row for row in rows if (row["task"], row["method"]) == (task.name, method)]
            results = [row[task.measure] for row in same]
            certified = max((row["certified"] for row in same if row["certified"] is not None), default=None)
            largest = max(row["largest_product"] for row in same)
            milliseconds = 1e3 * mean(row["seconds"] / row["steps"] for row in same)
            lines.append(
                f"| {task.name}, {task.measure} | {method} | {mean(results):.3f} | {min(results):.3f} to "
                f"{max(results):.3f} | {largest:.4f} | {'no' if certified is None else f'{certified:.4f}'} | "
                f"{milliseconds:.2f} |"
            )
    return "\n".join(lines) + "\n"


def jobs(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    made = []
    for task in TASKS.values():
        steps = setting.digits_steps if task is Digits else setting.critic_steps
        for seed in seeds:
            for number, method in enumerate(METHODS):
                name, title = f"{task.name}-{number}-{seed}", f"{task.name}, {method}, seed {seed}"
                made.append(Job(name, title, steps, partial(Trained, task(setting), method, seed)))
    return made


def work(setting: Setting, seeds: Sequence[int], out: Path, console: Console) -> Results:
    rows = list(train(jobs(setting, seeds), out, console, setting.record).values())
    rate = f"Adam at {setting.rate:g}, {setting.digits_steps} and {setting.critic_steps} steps, {len(seeds)} seeds; "
    text = f"{rate}everything else is each method's default. The bound is {BOUND:g}.\n\n{table(rows)}"
    return Results({"setting": asdict(setting), "rows": rows}, text, {})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return run_setting(MODULE, __doc__, "runs/lipschitz", (Setting(), SHORT), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
