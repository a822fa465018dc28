"""What the commands of all experiments share: a configuration from options, and the run in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console

from p4torch.runs import folder
from p4torch.runs.runner import Run, count_workers, start


class Config(Protocol):
    """What a run consists of."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its trainings."""

    def fields(self) -> dict[str, Any]:
        """For JSON."""


C = TypeVar("C", bound=Config)
#: The options by name; None for what was not given.
Overrides = dict[str, Any]


def configured(
    kind: str, names: Iterable[str], preset: dict[str, Any], overrides: Overrides, stored: Path | None
) -> dict[str, Any]:
    """The values of a configuration: those of the preset, or the named ones of the config.json `stored`, if there is
    such a file; then what was asked for.

    Raises:
        CheckpointError: the file is no configuration of this kind.
    """
    values = folder.stored(stored, names, kind) if stored is not None and stored.exists() else preset
    return {**values, **{name: value for name, value in overrides.items() if value is not None}}


def execute(
    resolve: Callable[[Overrides, Path | None], C],
    work: Callable[[C, Run], None],
    overrides: Overrides,
    out: Path,
    workers: int | None,
    console: Console,
    *,
    resume: bool = False,
    before: Callable[[C], None] = lambda config: None,
) -> None:
    """Check everything, then do the work in the run folder `out`. Raises P4Error for what cannot be done.

    Args:
        resolve: the configuration, from what was asked for and the config.json of the run that is resumed.
        work: all jobs, and what they leave.
        before: called with the configuration before the run is started.
    """
    workers = count_workers(workers)
    config = resolve(overrides, out / "config.json" if resume else None)
    before(config)
    with start(out, config.fields(), seeds=config.seeds, workers=workers, resume=resume, console=console) as run:
        work(config, run)
