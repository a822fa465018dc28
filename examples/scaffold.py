"""What the example scripts share: options, variants trained in turns with a checkpoint each, and the run folder.

Seconds are CPU seconds of one thread, around the steps only: the waiting for a shared machine is not in them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from benchmarks.layers import Missing
from benchmarks.peers import load, versions
from rich.console import Console
from torch import Tensor, nn

import p4torch as p4
from p4torch.cli.options import integers
from p4torch.errors import P4Error
from p4torch.runs.checkpoint import load_checkpoint, save_checkpoint
from p4torch.runs.folder import prepare, write_compact
from p4torch.runs.progress import display
from p4torch.runs.runner import Results, Run, recorded

Row = dict[str, Any]
#: A dataclass: the size of everything.
S = TypeVar("S", bound=Any)

#: Stands below every table.
SECONDS = "Seconds are CPU seconds of one thread, of the steps alone (no data, no evaluation), merges included.\n"


class Stopwatch:
    """CPU seconds spent inside `with stopwatch:`."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._since = time.process_time()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.process_time() - self._since


class Training(Protocol):
    """A variant while it trains. The batch of a step is a pure function of (seed, step), so that a resume is exact."""

    step: int

    @property
    def note(self) -> str:
        """How it is doing, for people."""

    def advance(self) -> None:
        """One optimizer step, timed by a `Stopwatch`, and what is recorded after it."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs, records and seconds included: tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""

    def row(self) -> Row:
        """What metrics.json keeps."""


class Fit:
    """What most trainings are: a model, its optimizer and its merges. `curve` holds (step, seconds, value, ...)."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: p4.MergeScheduler | None = None

    def __init__(self) -> None:
        self.step, self.watch = 0, Stopwatch()
        self.curve: list[tuple[float, ...]] = []

    def update(self, loss: Callable[[], Tensor]) -> Tensor:
        """One optimizer step on the loss, with its merge, timed; the loss `()`."""
        with self.watch:
            self.optimizer.zero_grad()
            value = loss()
            value.backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        self.step += 1
        return value.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs."""
        return {
            "step": self.step,
            "seconds": self.watch.seconds,
            "curve": self.curve,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.step, self.watch.seconds, self.curve = state["step"], state["seconds"], list(state["curve"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


@dataclass(frozen=True)
class Job:
    """A variant to train. `name` is that of its checkpoint; names of one run differ."""

    name: str
    title: str
    steps: int
    start: Callable[[], Training] = field(compare=False)


def train(jobs: Sequence[Job], out: Path, console: Console, chunk: int) -> dict[Job, Row]:
    """The rows of all jobs, trained in turns of `chunk` steps, so that what disturbs the machine hits all alike.

    A checkpoint follows each turn. Jobs that have one go on from it.
    """
    folder = out / "checkpoints"
    folder.mkdir(exist_ok=True)
    running = {job: job.start() for job in jobs}
    rows: dict[Job, Row] = {}
    with display(jobs, console, lambda job, row: f"{job.title}: done") as shown:
        for job, training in running.items():
            shown.started(job)
            if (folder / f"{job.name}.pt").exists():
                training.load_state_dict(load_checkpoint(folder / f"{job.name}.pt"))
        while running:
            for job, training in list(running.items()):
                before = training.step
                for _ in range(min(chunk, job.steps - before)):
                    training.advance()
                if training.step > before:
                    save_checkpoint(folder / f"{job.name}.pt", training.state_dict())
                shown.progressed(job, training)
                if training.step >= job.steps:
                    rows[job] = running.pop(job).row()
                    shown.finished(job, rows[job])
    return {job: rows[job] for job in jobs}


def peer(package: str, console: Console) -> Any:
    """A package that is compared with, or None, said by name: its rows are left out then."""
    try:
        return load(package)
    except Missing as error:
        console.print(str(error), highlight=False, markup=False)
        return None


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Of `python -m module`; the description, which has an example, keeps its lines."""
    plain = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f"python -m {module}", description=description, formatter_class=plain)


def add_options(parser: argparse.ArgumentParser, out: str, seeds: str = "0") -> None:
    """The options that all scripts have."""
    parser.add_argument("--out", type=Path, default=Path(out), help=f"run folder, new or empty ({out})")
    parser.add_argument("--short", action="store_true", help="a few steps of everything, in seconds")
    parser.add_argument("--seeds", default=seeds, type=integers, help=f"with commas between them ({seeds})")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")


def run_setting(
    module: str,
    description: str | None,
    out: str,
    settings: tuple[S, S],
    work: Callable[[S, Sequence[int], Path, Console], Results],
    arguments: Sequence[str] | None,
) -> int:
    """The command of a script without options of its own; its exit code. `settings` are the full and the short one."""
    command_line = parser(module, description)
    add_options(command_line, out, "0,1,2")
    options = command_line.parse_args(arguments)
    setting = settings[options.short]
    fields = {"setting": asdict(setting), "seeds": list(options.seeds)}
    return run(module, options, fields, partial(work, setting, options.seeds))


def command(module: str) -> str:
    """That of `python -m module`, for provenance."""
    return " ".join(["python -m", module, *sys.argv[1:]])


def run(
    module: str, options: argparse.Namespace, fields: dict[str, Any], work: Callable[[Path, Console], Results]
) -> int:
    """Do the work in the run folder and write what it leaves; the exit code. `fields` is the whole configuration."""
    torch.set_num_threads(1)
    console, out = Console(), options.out
    try:
        prepare(out, fields, resume=options.resume)
        with recorded(out, seeds=list(options.seeds), peers=versions(), command=command(module)):
            results = work(out, console)
    except P4Error as error:
        console.print(f"Error: {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Stopped; go on with --resume.")
        return 130
    Run(out, 1, console).leave(replace(results, table=f"{results.table}\n{SECONDS}"), write_compact)
    return 0
