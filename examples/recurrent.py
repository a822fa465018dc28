"""An orthogonal recurrent network, its matrix kept so by P4, by its peers, and not at all.

    python -m examples.recurrent copying --out runs/copying
    python -m examples.recurrent digits --out runs/digits

Every way trains the same network from the same weights on the same batches, with Adam at one rate for the rest of the
network and its own best rate, out of one list, for the recurrent matrix; that is chosen in shorter trainings with a
seed of their own, by the loss of their last steps.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import p4torch as p4
from examples.recurrent_methods import METHODS, Method
from examples.recurrent_network import Network
from examples.recurrent_report import figure, table
from examples.recurrent_tasks import Copying, Digits, Task
from examples.scaffold import Fit, Job, Results, Row, add_options, parser, peer, run, train

#: Steps between two points of a curve, and between two turns.
EVERY, TURN = 10, 25
TUNE_SEED = 100


@dataclass(frozen=True)
class Setting:
    """What a run does, but for its seeds."""

    task: Copying | Digits
    batch: int
    steps: int
    tune_steps: int
    hidden: int = 128
    learning_rate: float = 1e-3
    rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    clip: float = 1.0
    #: Size of the network whose steps are timed alone, and how many.
    large: int = 512
    large_steps: int = 5


SETTINGS = {
    "copying": Setting(Copying(), batch=32, steps=1000, tune_steps=200),
    "digits": Setting(Digits(), batch=64, steps=1000, tune_steps=200, rates=(3e-4, 1e-3, 3e-3, 1e-2), large_steps=0),
}
SHORT = {"steps": 40, "tune_steps": 10, "batch": 4, "hidden": 32, "rates": (1e-4, 1e-3), "large": 32}


class Learner(Fit):
    """One training (`examples.scaffold.Training`)."""

    model: Network

    def __init__(self, setting: Setting, method: Method, rate: float, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.setting, self.method, self.rate, self.seed = setting, method, rate, seed
        self.task: Task = setting.task
        self.model = self.task.network(setting.hidden)
        method.apply(self.model)
        named = [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]
        matrix = [value for name, value in named if "recurrent" in name]
        rest = [value for name, value in named if "recurrent" not in name]
        self.parameters = [*rest, *matrix]
        self.trainable = sum(value.numel() for value in matrix)
        groups: list[dict[str, Any]] = [{"params": rest}, *([{"params": matrix, "lr": rate}] if matrix else [])]
        self.optimizer = torch.optim.Adam(groups, lr=setting.learning_rate)
        self.scheduler = self._scheduler()
        self.losses: list[float] = []  # since the last point of the curve

    def _scheduler(self) -> p4.MergeScheduler | None:
        if not self.method.merges:
            return None
        state = self.method.optimizer_state
        return p4.MergeScheduler(self.model, self.optimizer, self.method.every, optimizer_state=state, seed=self.seed)

    @property
    def note(self) -> str:
        return f"loss {self.curve[-1][2]:.4f}" if self.curve else ""

    def advance(self) -> None:
        """One step; a point of the curve is the mean loss of the last ten batches, and the held-out ones after them."""
        batch = self.task.batch(self.seed, self.step, self.setting.batch)
        with self.watch:
            loss = self._move(batch)
        self.step += 1
        self.losses.append(float(loss))
        if self.step % EVERY == 0:
            point = [self.step, self.watch.seconds, statistics.fmean(self.losses)]
            self.curve.append((*point, *self._held_out()))
            self.losses = []

    def _move(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = self.task.loss(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.setting.clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return loss.detach()

    def _held_out(self) -> tuple[float, ...]:
        """Copying never sees a batch twice: its training loss is a held-out one."""
        return self.task.held_out(self.model) if isinstance(self.task, Digits) else ()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.losses = list(state["losses"])

    def last_loss(self) -> float:
        """The mean over the last 50 steps (all, if they are fewer); infinite where it is no number."""
        value = statistics.fmean(point[2] for point in self.curve[-50 // EVERY :])
        return value if math.isfinite(value) else math.inf

    @torch.no_grad()
    def row(self) -> Row:
        weight = self.model.recurrent.double()
        error = weight.mT @ weight - torch.eye(len(weight), dtype=torch.float64)
        held_out, right = self.task.held_out(self.model)
        return {
            "method": self.method.name,
            "title": self.method.title,
            "seed": self.seed,
            "rate": self.rate,
            "matrix_parameters": self.trainable,
            "loss": self.last_loss(),
            "held_out_loss": held_out,
            "right": right,
            "defect": float(error.norm()) / len(weight) ** 0.5,
            "step_milliseconds": 1000 * self.watch.seconds / self.step,
            "merged": self.scheduler.merged if self.scheduler else 0,
            "skipped": self.scheduler.skipped if self.scheduler else 0,
            "curve": self.curve,
        }


def job(setting: Setting, method: Method, rate: float, seed: int, steps: int, stage: str) -> Job:
    """A training by name."""
    title = f"{method.title}, rate {rate:g}, seed {seed}"
    return Job(f"{stage}-{method.name}-{rate:g}-{seed}", title, steps, lambda: Learner(setting, method, rate, seed))


def tune(setting: Setting, methods: Sequence[Method], out: Path, console: Console) -> list[Row]:
    """Every rate of the list for every method that has one, without curves."""
    jobs = [
        job(setting, method, rate, TUNE_SEED, setting.tune_steps, "tune")
        for method in methods
        if method.trains
        for rate in setting.rates
    ]
    rows = train(jobs, out, console, TURN).values()
    return [{name: row[name] for name in ("method", "rate", "seed", "loss")} for row in rows]


def best_rate(method: Method, tuned: Sequence[Row]) -> float:
    """The rate with the least loss; 0 for a matrix that does not train."""
    found = [row for row in tuned if row["method"] == method.name]
    return float(min(found, key=lambda row: row["loss"])["rate"]) if found else 0.0


def step_milliseconds(setting: Setting, methods: Sequence[Method]) -> dict[str, float]:
    """Of the large network, by method: means over whole turns of all methods, the first step left out."""
    fits = {method.name: Learner(replace(setting, hidden=setting.large), method, 1e-5, TUNE_SEED) for method in methods}
    for turn in range(setting.large_steps + 1):
        for fit in fits.values():
            if turn == 1:
                fit.watch.seconds = 0.0
            fit.advance()
    return {name: 1000 * fit.watch.seconds / setting.large_steps for name, fit in fits.items()}


def compare(setting: Setting, seeds: Sequence[int], out: Path, console: Console) -> Results:
    """Tune, train, report."""
    methods = [method for method in METHODS if method.peer is None or peer(method.peer, console) is not None]
    tuned = tune(setting, methods, out, console)
    rates = {method: best_rate(method, tuned) for method in methods}
    jobs = [job(setting, method, rate, seed, setting.steps, "full") for seed in seeds for method, rate in rates.items()]
    rows = list(train(jobs, out, console, TURN).values())
    large = step_milliseconds(setting, methods) if setting.large_steps else {}
    baseline = setting.task.baseline
    metrics = {"baseline": baseline, "tuning": tuned, "large": large, "jobs": rows}
    return Results(metrics, table(rows, baseline, large, setting.large), {"recurrent": figure(rows, baseline)})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    asked = parser("examples.recurrent", __doc__)
    tasks = asked.add_subparsers(dest="task", required=True)
    for name in SETTINGS:
        add_options(tasks.add_parser(name), f"runs/{name}", seeds="0,1")
    options = asked.parse_args(arguments)
    setting = SETTINGS[options.task]
    if options.short:
        setting = replace(setting, **SHORT)  # type: ignore[arg-type]
        setting = replace(setting, task=Copying(delay=20)) if options.task == "copying" else setting
    fields = {"task_name": options.task, **asdict(setting), "seeds": options.seeds, "tune_seed": TUNE_SEED}
    fields["methods"] = [asdict(method) for method in METHODS]
    torch.set_flush_denormal(True)  # denormal numbers took up to a third of a trained network's step
    try:
        return run(
            "examples.recurrent", options, fields, lambda out, console: compare(setting, options.seeds, out, console)
        )
    finally:
        torch.set_flush_denormal(False)


if __name__ == "__main__":
    sys.exit(main())
