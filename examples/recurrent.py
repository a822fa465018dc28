"""An orthogonal recurrent network, its matrix kept so by P4, by its peers, and not at all.

    python -m examples.recurrent copying --out runs/copying
    python -m examples.recurrent copying-512 --out runs/copying-512
    python -m examples.recurrent digits --out runs/digits

Every way trains the same network from the same weights on the same batches, with Adam at its own best two rates, one
for the recurrent matrix and one for the rest of the network. They are chosen by successive halving from all pairs of
two lists, the same for all ways: trainings with a seed of their own, of which the half with the lower loss goes on.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import p4torch as p4
from examples.recurrent_methods import METHODS, Method
from examples.recurrent_network import Network
from examples.recurrent_report import SOLVED, figure, table
from examples.recurrent_tasks import Copying, Digits, Task
from examples.scaffold import Fit, Job, Row, add_options, parser, peer, run, train
from p4torch.runs.runner import Results

#: Steps between two points of a curve, each the mean loss of as many batches, and between two turns.
EVERY, TURN = 10, 10
TUNE_SEED = 100

Rates = tuple[float, float]
"""Of the recurrent matrix and of the rest; 0 for a matrix that does not train."""


@dataclass(frozen=True)
class Setting:
    """What a run does, but for its seeds. Tunings are halved after each of the `rungs`, counted in steps. The gradient
    of all parameters together is clipped to the norm `clip`. `without` names methods that are left out."""

    task: Copying | Digits
    batch: int
    steps: int
    rungs: tuple[int, ...]
    hidden: int = 128
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    rest_rates: tuple[float, ...] = (3e-3, 5e-3, 8e-3)
    clip: float = 0.3
    without: tuple[str, ...] = ("p4-32",)


SETTINGS = {
    "copying": Setting(Copying(), batch=32, steps=200, rungs=(40, 60, 90)),
    "copying-512": Setting(
        Copying(), batch=32, steps=50, rungs=(15, 25, 35), hidden=512, without=("p4", "geotorch", "matrix_exp", "free")
    ),
    "digits": Setting(Digits(), batch=64, steps=700, rungs=(60, 120, 180), rest_rates=(1e-3, 3e-3, 1e-2)),
}
SHORT = {"steps": 40, "rungs": (10, 20), "batch": 4, "hidden": 64, "rates": (1e-4, 1e-3), "rest_rates": (1e-3, 3e-3)}


class Learner(Fit):
    """One training (`examples.scaffold.Training`)."""

    model: Network

    def __init__(self, setting: Setting, method: Method, rates: Rates, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.setting, self.method, self.rates, self.seed = setting, method, rates, seed
        self.task: Task = setting.task
        self.model = self.task.network(setting.hidden)
        method.apply(self.model)
        named = [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]
        matrix = [value for name, value in named if "recurrent" in name]
        rest = [value for name, value in named if "recurrent" not in name]
        self.parameters = [*rest, *matrix]
        self.trainable = sum(value.numel() for value in matrix)
        groups: list[dict[str, Any]] = [{"params": rest}, *([{"params": matrix, "lr": rates[0]}] if matrix else [])]
        self.optimizer = torch.optim.Adam(groups, lr=rates[1])
        self.scheduler = self._scheduler()
        self.losses: list[float] = []  # the last ones
        self.solved: tuple[int, float] | None = None  # steps and seconds until their mean was below the goal

    def _scheduler(self) -> p4.MergeScheduler | None:
        if not self.method.merges:
            return None
        return p4.MergeScheduler(self.model, self.optimizer, self.method.every, seed=self.seed)

    @property
    def note(self) -> str:
        return f"loss {self.curve[-1][2]:.4f}" if self.curve else ""

    def advance(self) -> None:
        """One step; a point of the curve is the mean loss of the last batches, and the held-out ones after them."""
        batch = self.task.batch(self.seed, self.step, self.setting.batch)
        with self.watch:
            loss = self._move(batch)
        self.step += 1
        self.losses = [*self.losses, float(loss)][-EVERY:]
        mean = statistics.fmean(self.losses)
        if self.solved is None and len(self.losses) == EVERY and mean < SOLVED * self.task.baseline:
            self.solved = self.step, self.watch.seconds
        if self.step % EVERY == 0:
            self.curve.append((self.step, self.watch.seconds, mean, *self._held_out()))

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
        return {**super().state_dict(), "losses": self.losses, "solved": self.solved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.losses, self.solved = list(state["losses"]), state["solved"]

    def last_loss(self) -> float:
        """The mean over the last 50 steps (all, if they are fewer); infinite where it is no number."""
        return _mean(point[2] for point in self.curve[-50 // EVERY :])

    @torch.no_grad()
    def row(self) -> Row:
        weight = self.model.recurrent.double()
        error = weight.mT @ weight - torch.eye(len(weight), dtype=torch.float64)
        held_out, right = self.task.held_out(self.model)
        return {
            "method": self.method.name,
            "title": self.method.title,
            "seed": self.seed,
            "rates": list(self.rates),
            "matrix_parameters": self.trainable,
            "solved": self.solved,
            "loss": self.last_loss(),
            "tuning_loss": _mean(self.losses),
            "held_out_loss": held_out,
            "right": right,
            "defect": float(error.norm()) / len(weight) ** 0.5,
            "step_milliseconds": 1000 * self.watch.seconds / self.step,
            "merged": self.scheduler.merged if self.scheduler else 0,
            "skipped": self.scheduler.skipped if self.scheduler else 0,
            "curve": self.curve,
        }


def _mean(losses: Iterable[float]) -> float:
    value = statistics.fmean(losses)
    return value if math.isfinite(value) else math.inf


def job(setting: Setting, method: Method, rates: Rates, seed: int, steps: int, stage: str) -> Job:
    """A training by name."""
    title = f"{method.title}, rates {rates[0]:g} and {rates[1]:g}, seed {seed}"
    name = f"{stage}-{method.name}-{rates[0]:g}-{rates[1]:g}-{seed}"
    return Job(name, title, steps, lambda: Learner(setting, method, rates, seed))


def tune(setting: Setting, methods: Sequence[Method], out: Path, console: Console) -> list[Row]:
    """Successive halving of all pairs of rates, without curves: a row for each pair at each rung it came to."""
    pairs = {method: [] if method.tuned_as else all_rates(setting, method) for method in methods}
    result: list[Row] = []
    for steps in setting.rungs:
        jobs = [
            job(setting, method, rates, TUNE_SEED, steps, "tune") for method, left in pairs.items() for rates in left
        ]
        rows = train(jobs, out, console, TURN).values()
        result += [{"steps": steps, **{key: row[key] for key in ("method", "rates", "tuning_loss")}} for row in rows]
        pairs = {method: ranked(method, result)[: (len(left) + 1) // 2] for method, left in pairs.items()}
    return result


def all_rates(setting: Setting, method: Method) -> list[Rates]:
    """Every pair of the two lists."""
    return [(rate, rest) for rate in (setting.rates if method.trains else (0.0,)) for rest in setting.rest_rates]


def ranked(method: Method, tuned: Sequence[Row]) -> list[Rates]:
    """The pairs of the last rung, the one with the least loss first; those of the method it is tuned as, if any."""
    rows = [row for row in tuned if row["method"] == (method.tuned_as or method.name)]
    last = [row for row in rows if row["steps"] == max(row["steps"] for row in rows)]
    return [(row["rates"][0], row["rates"][1]) for row in sorted(last, key=lambda row: row["tuning_loss"])]


def compare(setting: Setting, seeds: Sequence[int], out: Path, console: Console) -> Results:
    """Tune, train, report."""
    methods = [method for method in METHODS if method.name not in setting.without]
    methods = [method for method in methods if method.peer is None or peer(method.peer, console) is not None]
    tuned = tune(setting, methods, out, console)
    best = {method: ranked(method, tuned)[0] for method in methods}
    jobs = [
        job(setting, method, rates, seed, setting.steps, "full") for seed in seeds for method, rates in best.items()
    ]
    rows = list(train(jobs, out, console, TURN).values())
    baseline = setting.task.baseline
    metrics = {"baseline": baseline, "tuning": tuned, "jobs": rows}
    return Results(metrics, table(rows, baseline), {"recurrent": figure(rows, baseline)})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    command_line = parser("examples.recurrent", __doc__)
    tasks = command_line.add_subparsers(dest="task", required=True)
    for name in SETTINGS:
        add_options(tasks.add_parser(name), f"runs/{name}", seeds="0,1,2")
    options = command_line.parse_args(arguments)
    setting = SETTINGS[options.task]
    if options.short:
        setting = replace(setting, **SHORT)  # type: ignore[arg-type]
        setting = replace(setting, task=Copying(delay=20)) if isinstance(setting.task, Copying) else setting
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
