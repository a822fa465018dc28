"""What `python -m experiments patches` does with its options."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.patches.config import Config
from experiments.patches.run import results
from p4torch.runs import folder
from p4torch.runs.runner import count_workers, start

#: What differs from the full run in a short one, which shows that everything works.
SHORT: dict[str, Any] = {
    "ranks": (2,),
    "every": (10,),
    "blocks": (21,),
    "seeds": (0,),
    "learning_rates": (1e-2,),
    "steps": 40,
    "interval": 20,
    "layers": 2,
    "clock_steps": 10,
}


@dataclass(frozen=True)
class Request:
    """The options; `asked` holds what was given, by the names of `Config`."""

    asked: dict[str, Any]
    out: Path = Path("runs/patches")
    workers: int | None = None
    resume: bool = False
    short: bool = False


def execute(request: Request, console: Console) -> None:
    """Check everything, then train, measure and print. Raises P4Error for what cannot be done."""
    workers, out = count_workers(request.workers), request.out
    config = resolve(request)
    with start(
        out, config.fields(), seeds=config.seeds, workers=workers, resume=request.resume, console=console
    ) as run:
        run.leave(results(config, run))


def resolve(request: Request) -> Config:
    """The defaults, changed by a stored configuration that is resumed (or by a short run), and by what was asked."""
    stored = request.out / "config.json"
    values = dict(SHORT) if request.short else {}
    if request.resume and stored.exists():
        values = folder.stored(stored, [field.name for field in fields(Config)], "patches")
    asked = {name: value for name, value in request.asked.items() if value is not None}
    return Config(**{**values, **asked})
