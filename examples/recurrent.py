"""Orthogonal recurrent networks: the copying problem, and digits read pixel by pixel, with the recurrent matrix kept
orthogonal by p4torch, by geotorch, by torch's own parametrization (both by matrix exponentials), or not at all.

    python -m examples.recurrent --out runs/recurrent
    python -m examples.recurrent --tune --out runs/recurrent-rates     # the rates that RATES holds
    python -m examples.recurrent --short --out runs/recurrent-short    # seconds

Copying: 10 symbols out of 8, then 200 steps of nothing, then the 10 are asked for. Without memory the loss is at best
10 ln 8 / (L + 20). Digits: the 8 x 8 images of scikit-learn as sequences of 64 numbers; a third is held out. All
variants start from the same weights and see the same batches. The matrix is read once a forward pass, whoever makes it.

Source: Arjovsky, Shah and Bengio (2016), unitary evolution recurrent neural networks, for both tasks.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import p4torch as p4
from examples.recurrent_network import Network
from examples.scaffold import Job, Results, Row, Stopwatch, add_options, peer, run, train
from p4torch.cli.options import numbers
from p4torch.sites import direction_generator

MODULE = "examples.recurrent"

#: Symbols to copy, their number, and all inputs: nothing, the symbols, and the signal to begin.
ALPHABET, COPIED, INPUTS = 8, 10, 10

#: Rates of the recurrent matrix that were tried for every method, and what `--tune` found; all else has `rate`.
CANDIDATES = (1e-4, 3e-4, 1e-3, 3e-3)
RATES: dict[str, dict[str, float]] = {
    "copying": {"free": 1e-4, "geotorch": 1e-3, "torch": 1e-3, "p4 rank 4": 1e-3, "p4 rank 16": 1e-3},
    "digits": {"free": 1e-4, "geotorch": 1e-3, "torch": 1e-3, "p4 rank 4": 1e-3, "p4 rank 16": 1e-3},
}


@dataclass(frozen=True)
class Setting:
    """The size of everything."""

    hidden: int = 128
    delay: int = 200
    batch: int = 128
    copying_steps: int = 1000
    digits_steps: int = 1000
    rate: float = 1e-3
    every: int = 10
    record: int = 50


SHORT = Setting(hidden=8, delay=4, batch=4, copying_steps=6, digits_steps=6, every=2, record=2)


@dataclass(frozen=True)
class Variant:
    """A task and who keeps the matrix orthogonal: "free", "geotorch", "torch", or "p4 rank k"."""

    task: str
    method: str
    matrix_rate: float

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.task}, {self.method}"


class Copying:
    """Batches `(t, m)` of the copying problem, t = L + 20."""

    symbols, outputs = INPUTS, ALPHABET + 1

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self.baseline = COPIED * math.log(ALPHABET) / (delay + 2 * COPIED)

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and what is asked for."""
        drawn = torch.randint(1, ALPHABET + 1, (COPIED, count), generator=generator)
        x = torch.zeros(self.delay + 2 * COPIED, count, dtype=torch.int64)
        y = torch.zeros_like(x)
        x[:COPIED], y[-COPIED:], x[-COPIED - 1] = drawn, drawn, INPUTS - 1
        return x, y

    def loss(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of all positions, in nats."""
        return F.cross_entropy(network(x).flatten(0, 1), y.flatten())

    def test(self, network: Network) -> dict[str, float]:
        """The loss of 500 fresh sequences, and the share of symbols that are right."""
        x, y = self.batch(500, torch.Generator().manual_seed(10**6))
        logits = network(x)
        right = (logits[-COPIED:].argmax(-1) == y[-COPIED:]).double().mean()
        return {"loss": float(F.cross_entropy(logits.flatten(0, 1), y.flatten())), "accuracy": float(right)}


class Digits:
    """Images as sequences `(64, m)`, and their labels `(m,)`."""

    symbols, outputs, baseline = None, 10, math.log(10)

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
        cut = 2 * len(y) // 3
        self.x, self.y, self.x_test, self.y_test = x[:cut], y[:cut], x[cut:], y[cut:]

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random images of the training part."""
        chosen = torch.randint(len(self.y), (count,), generator=generator)
        return self.x[chosen].mT, self.y[chosen]

    def loss(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the last output, in nats."""
        return F.cross_entropy(network.output(network.states(x)[-1]), y)

    def test(self, network: Network) -> dict[str, float]:
        """On the held-out third."""
        logits = network.output(network.states(self.x_test.mT)[-1])
        right = (logits.argmax(-1) == self.y_test).double().mean()
        return {"loss": float(F.cross_entropy(logits, self.y_test)), "accuracy": float(right)}


class Fit:
    """One variant while it trains (`examples.scaffold.Training`)."""

    def __init__(self, variant: Variant, setting: Setting, seed: int, geotorch: Any) -> None:
        self.variant, self.setting, self.seed = variant, setting, seed
        self.task = Copying(setting.delay) if variant.task == "copying" else Digits()
        torch.manual_seed(seed)
        self.network = Network(setting.hidden, self.task.outputs, self.task.symbols)
        self.scheduler: p4.MergeScheduler | None = None
        self._constrain(geotorch)
        others = [self.network.threshold, self.network.input, *self.network.output.parameters()]
        known = {id(value) for value in others}
        matrix = [value for value in self.network.parameters() if value.requires_grad and id(value) not in known]
        groups = [{"params": others, "lr": setting.rate}, {"params": matrix, "lr": variant.matrix_rate}]
        self.optimizer = torch.optim.Adam(groups, foreach=True)
        if variant.method.startswith("p4"):
            self.scheduler = p4.MergeScheduler(
                self.network, self.optimizer, every=setting.every, optimizer_state="transport", seed=seed
            )
        self.step, self.watch = 0, Stopwatch()
        self.curve: list[tuple[int, float, float]] = []
        self._losses: list[Tensor] = []

    def _constrain(self, geotorch: Any) -> None:
        method = self.variant.method
        if method.startswith("p4"):
            rank = int(method.split()[-1])
            p4.perturb(self.network, "recurrent", p4.Orthogonal, rank=rank, scale=rank**-0.5)
        elif method == "geotorch":
            weight = self.network.recurrent.detach().clone()
            geotorch.orthogonal(self.network, "recurrent")
            self.network.recurrent = weight  # geotorch starts from a random one
        elif method == "torch":
            parametrizations.orthogonal(self.network, "recurrent", orthogonal_map="matrix_exp")

    @property
    def note(self) -> str:
        return f"loss {self.curve[-1][2]:.4f}" if self.curve else ""

    def advance(self) -> None:
        x, y = self.task.batch(self.setting.batch, direction_generator(self.seed, "batch", self.step))
        with self.watch:
            loss = self.task.loss(self.network, x, y)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        self.step += 1
        self._losses.append(loss.detach())
        if self.step % self.setting.record == 0:
            self.curve.append((self.step, self.watch.seconds, float(torch.stack(self._losses).mean())))
            self._losses.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.watch.seconds,
            "curve": self.curve,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.watch.seconds, self.curve = state["step"], state["seconds"], list(state["curve"])
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    @torch.no_grad()
    def row(self) -> Row:
        matrix = self.network.recurrent.detach().double()
        solved = [step for step, _, loss in self.curve if loss < self.task.baseline / 10]
        reached = [seconds for _, seconds, loss in self.curve if loss < self.task.baseline / 10]
        return {
            **asdict(self.variant),
            "seed": self.seed,
            "baseline": self.task.baseline,
            **self.task.test(self.network),
            "orthogonality": float(torch.linalg.matrix_norm(matrix.mT @ matrix - torch.eye(len(matrix)).double(), 2)),
            "solved_step": solved[0] if solved else None,
            "solved_seconds": reached[0] if reached else None,
            "step_seconds": self.watch.seconds / self.step,
            "curve": self.curve,
        }


def work(setting: Setting, variants: Sequence[Variant], seeds: Sequence[int], out: Path, console: Console) -> Results:
    """Train all variants with every seed."""
    geotorch = peer("geotorch", console)
    chosen = [variant for variant in variants if variant.method != "geotorch" or geotorch is not None]
    jobs = [
        Job(
            f"{variant.title}, {variant.matrix_rate:g}, {seed}".replace(", ", "-").replace(" ", ""),
            f"{variant.title}, rate {variant.matrix_rate:g}, seed {seed}",
            setting.copying_steps if variant.task == "copying" else setting.digits_steps,
            partial(Fit, variant, setting, seed, geotorch),
        )
        for seed in seeds
        for variant in chosen
    ]
    rows = list(train(jobs, out, console, setting.record).values())
    return Results({"rows": rows}, table(rows, setting), {"recurrent": figure(rows)})


def table(rows: Sequence[Row], setting: Setting) -> str:
    """A line a variant. Several seeds are averaged."""
    lines = [
        f"Hidden {setting.hidden}, batch {setting.batch}, delay {setting.delay} (loss without memory "
        f"{Copying(setting.delay).baseline:.4f}), merges every {setting.every} steps. Solved: the training loss, over "
        f"{setting.record} steps, is below a tenth of the loss without memory (digits: of ln 10).",
        "",
        "| task | method | rate of the matrix | test loss | test accuracy | solved at step | solved after s "
        "| ms a step | norm of WᵀW - I |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task, method, rate in dict.fromkeys((row["task"], row["method"], row["matrix_rate"]) for row in rows):
        same = [row for row in rows if (row["task"], row["method"], row["matrix_rate"]) == (task, method, rate)]
        loss, accuracy, seconds = (_mean([row[key] for row in same]) for key in ("loss", "accuracy", "step_seconds"))
        steps, spent = (_mean([row[key] for row in same]) for key in ("solved_step", "solved_seconds"))
        lines.append(
            f"| {task} | {method} | {rate:g} | {loss:.4f} | {100 * accuracy:.1f} % | "
            f"{'no' if steps is None else f'{steps:.0f}'} | {'' if spent is None else f'{spent:.0f}'} | "
            f"{1000 * seconds:.1f} | {max(row['orthogonality'] for row in same):.1g} |"
        )
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float | None]) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def figure(rows: Sequence[Row]) -> Figure:
    """Losses over steps and over seconds, for each task, of the first seed."""
    drawn = Figure(figsize=(9, 6), layout="constrained")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for axes, task in zip(drawn.subplots(len(tasks), 2, squeeze=False), tasks, strict=True):
        same = [row for row in rows if row["task"] == task and row["seed"] == rows[0]["seed"] and row["curve"]]
        for row in same:
            steps, seconds, loss = zip(*row["curve"], strict=True)
            for axis, x in zip(axes, (steps, seconds), strict=True):
                axis.semilogy(x, loss, label=f"{row['method']}, {row['matrix_rate']:g}", linewidth=1)
        for axis, label in zip(axes, ("step", "CPU seconds of one thread"), strict=True):
            if same:
                axis.axhline(same[0]["baseline"], color="gray", linestyle=":")
            axis.set(xlabel=label, ylabel=f"{task}: loss / nats")
        axes[0].legend(fontsize=7)
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, "runs/recurrent", "0")
    parser.add_argument("--tune", action="store_true", help="try rates instead: another seed, 300 and 200 steps")
    parser.add_argument("--rates", default=CANDIDATES, type=numbers, help="that --tune tries, with commas between them")
    options = parser.parse_args(arguments)
    setting = SHORT if options.short else Setting()
    variants = [Variant(task, method, rate) for task, rates in RATES.items() for method, rate in rates.items()]
    seeds = options.seeds
    if options.tune:
        setting = replace(
            setting, copying_steps=min(300, setting.copying_steps), digits_steps=min(200, setting.digits_steps)
        )
        variants = [Variant(each.task, each.method, rate) for each in variants for rate in options.rates]
        seeds = [seed + 100 for seed in seeds]
    fields = {"setting": asdict(setting), "rates": RATES, "seeds": list(seeds), "tune": options.tune}
    return run(MODULE, options, fields, partial(work, setting, variants, seeds))


if __name__ == "__main__":
    sys.exit(main())
