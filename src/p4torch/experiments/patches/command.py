"""What `p4torch patches` does with its options."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.experiments.patches.config import Config
from p4torch.experiments.patches.run import run
from p4torch.training.folder import prepare, read_json
from p4torch.training.provenance import cores

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
    workers = cores() if request.workers is None else request.workers
    if workers < 1:
        raise ArgumentError.of("workers", "an integer >= 1", workers)
    config = resolve(request)
    torch.set_num_threads(1)  # matrices of 63 x 63 are too small to share
    prepare(request.out, config.fields(), resume=request.resume)
    results = run(config, request.out, workers=workers, console=console)
    console.print(results.table, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Figure: {results.figure}", highlight=False, soft_wrap=True)


def resolve(request: Request) -> Config:
    """The defaults, changed by a stored configuration that is resumed (or by a short run), and by what was asked."""
    stored = request.out / "config.json"
    values = dict(SHORT) if request.short else {}
    if request.resume and stored.exists():
        found = read_json(stored)
        try:
            values = {field.name: _tupled(found[field.name]) for field in fields(Config)}
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"`{stored}` must be the configuration of a patches run, lacks {error}") from error
    asked = {name: value for name, value in request.asked.items() if value is not None}
    return Config(**{**values, **asked})


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
