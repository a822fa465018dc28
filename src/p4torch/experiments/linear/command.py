"""What `p4torch linear` does with its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.experiments.linear.problems import PROBLEMS
from p4torch.experiments.linear.run import run
from p4torch.experiments.linear.suites import SUITES, Config
from p4torch.training.folder import read_json
from p4torch.training.provenance import cores

#: Every table and figure, from jobs far too short to mean anything.
SHORT: dict[str, Any] = {"seeds": (0,), "rates": (3e-2,), "sizes": (64,), "cap": 4}


@dataclass(frozen=True)
class Request:
    """The options; None for what was not given."""

    suites: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    out: Path | None = None
    workers: int | None = None
    resume: bool = False
    short: bool = False


def execute(request: Request, console: Console) -> None:
    """Check everything, then train, measure and print. Raises P4Error for what cannot be done."""
    workers = cores() if request.workers is None else request.workers
    if workers < 1:
        raise ArgumentError.of("workers", "an integer >= 1", workers)
    out = request.out or Path("runs") / "linear"
    config = resolve(request, out / "config.json")
    torch.set_num_threads(1)
    results = run(config, out, workers=workers, resume=request.resume, console=console)
    console.print(results.table, markup=False, highlight=False, soft_wrap=True)
    for figure in results.figures:
        console.print(f"Figure: {figure}", highlight=False, soft_wrap=True)


def resolve(request: Request, stored: Path) -> Config:
    """The configuration: all suites, or the short ones, or those of a run that is resumed; then what was asked for."""
    values: dict[str, Any] = {"suites": tuple(SUITES), **(SHORT if request.short else {})}
    if request.resume and stored.exists():
        found = read_json(stored)
        try:
            values = {name: _tupled(found[name]) for name in ("suites", "seeds", "rates", "sizes", "cap")}
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"`{stored}` must be the configuration of a linear run, lacks {error}") from error
    for name in ("suites", "seeds"):
        if getattr(request, name) is not None:
            values[name] = getattr(request, name)
    return Config(**values)


def listing() -> str:
    """Suites and targets, for people."""
    config = Config(tuple(SUITES))
    counts = {name: len({job for line in make(config) for job in line.jobs}) for name, make in SUITES.items()}
    suites = (f"  {name}: {count} trainings" if count else f"  {name}" for name, count in counts.items())
    targets = (f"  {name}: {problem.title}" for name, problem in PROBLEMS.items())
    return "\n".join(["suites", *suites, "targets", *targets])


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
