"""What `python -m experiments linear` does with its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.linear.problems import PROBLEMS
from experiments.linear.run import results
from experiments.linear.suites import SUITES, Config
from p4torch.runs import folder
from p4torch.runs.runner import count_workers, start

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
    workers, out = count_workers(request.workers), request.out or Path("runs") / "linear"
    config = resolve(request, out / "config.json")
    with start(
        out, config.fields(), seeds=config.seeds, workers=workers, resume=request.resume, console=console
    ) as run:
        run.leave(results(config, run))


def resolve(request: Request, stored: Path) -> Config:
    """The configuration: all suites, or the short ones, or those of a run that is resumed; then what was asked for."""
    values: dict[str, Any] = {"suites": tuple(SUITES), **(SHORT if request.short else {})}
    if request.resume and stored.exists():
        values = folder.stored(stored, ("suites", "seeds", "rates", "sizes", "cap"), "linear")
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
