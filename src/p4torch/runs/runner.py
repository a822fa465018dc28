"""A run of many jobs in a folder: what is done is read, what is left is done in processes, with provenance."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from rich.console import Console

from p4torch._options import check_integer
from p4torch.errors import CheckpointError
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import differences, prepare, read_json, write_figure, write_json
from p4torch.runs.lock import locked
from p4torch.runs.pool import Pool, Progress, Report, Row, Work
from p4torch.runs.progress import Counted, display, say
from p4torch.runs.provenance import cores, provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JOBS = "jobs"
#: `write_json`, or `write_compact`.
Write = Callable[[Path, Any], None]


class Job(Protocol):
    """One training, or whatever takes long. It can be hashed and pickled."""

    @property
    def name(self) -> str:
        """Of its file or folder; names of one run differ."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def steps(self) -> int:
        """Its length, in any unit."""

    def fields(self) -> dict[str, Any]:
        """Everything that its row depends on. The row has these, too."""


J = TypeVar("J", bound=Job)
C = TypeVar("C", bound=Counted)


@dataclass(frozen=True)
class Results:
    """What a run leaves: metrics.json, table.md, and figures by file name (without ending)."""

    metrics: Any
    table: str
    figures: Mapping[str, Figure | None]


@dataclass(frozen=True)
class Run:
    """A run under way.

    Attributes:
        out: its folder, see `p4torch.runs.folder.prepare`.
        workers: processes at a time.
    """

    out: Path
    workers: int
    console: Console

    def rows(
        self,
        jobs: Sequence[J],
        work: Work[J, Progress],
        said: Callable[[J, Row], str],
        file: str = "{}.json",
        write: Write = write_json,
    ) -> dict[J, Row]:
        """The rows of all jobs. They stand in `jobs/` by the name `file`; what stands there already is not done again.

        Args:
            work: done with a job in a process of its own; importable.
            said: a finished job in one line.

        Raises:
            CheckpointError: a file belongs to another job.
            Interrupted, JobError: see `Pool`.
        """
        left = [job for job in jobs if finished(_path(self.out, file, job), job) is None]
        if 0 < len(left) < len(jobs):
            self.say(f"{len(jobs) - len(left)} of {len(jobs)} jobs are done already.")
        if left:
            (self.out / JOBS).mkdir(exist_ok=True)
            in_processes(left, partial(_keep, self.out, file, work, write), said, self.workers, self.console)
        return {job: read_json(_path(self.out, file, job)) for job in jobs}

    def leave(self, results: Results, write: Write = write_json) -> None:
        """Write and print the results."""
        write(self.out / "metrics.json", results.metrics)
        write_whole(self.out / "table.md", lambda temporary: temporary.write_text(results.table, encoding="utf-8"))
        self.say(results.table)
        for name, figure in results.figures.items():
            if figure is not None:
                self.say(f"Figure: {write_figure(self.out / name, figure)}")

    def say(self, text: str) -> None:
        """Print, as it is."""
        say(self.console, text)


def in_processes(
    jobs: Sequence[C], work: Work[C, Progress], said: Callable[[C, Row], str], workers: int, console: Console
) -> list[Row]:
    """Do jobs side by side and show how they are doing; `said` is a finished one in one line. Their rows, in the order
    in which they end.

    Raises:
        Interrupted, JobError: see `Pool`.
    """
    with display(jobs, console, said) as shown:
        pool: Pool[C, Progress] = Pool(min(workers, len(jobs)), work, shown)
        return pool.run(jobs)


@contextmanager
def start(
    out: Path, fields: dict[str, Any], *, seeds: Sequence[int], workers: int, resume: bool, console: Console
) -> Iterator[Run]:
    """A run in the folder `out`, new or resumed; `fields` is its whole configuration. One thread a process: what others
    do on the machine then changes no bits.

    Raises:
        ArgumentError, CheckpointError: see `prepare`.
    """
    torch.set_num_threads(1)
    prepare(out, fields, resume=resume)
    with recorded(out, seeds=list(seeds), workers=workers):
        yield Run(out, workers, console)


@contextmanager
def recorded(out: Path, **fields: Any) -> Iterator[dict[str, Any]]:
    """Have the folder for this run alone, and write provenance.json before and after, with what is added to the record
    meanwhile. What it held of earlier attempts is kept under "earlier"; "wall_seconds" are those of all attempts, null
    until this one ends. Raises ArgumentError if another run is in the folder."""
    with locked(out):
        yield from _recorded(out, **fields)


def _recorded(out: Path, **fields: Any) -> Iterator[dict[str, Any]]:
    path, record, started, before = out / "provenance.json", provenance(**fields), time.monotonic(), 0.0
    if path.exists():
        last = read_json(path)
        record["earlier"] = [*last.pop("earlier", []), last]
        before = max(attempt.get("wall_seconds") or 0.0 for attempt in record["earlier"])  # null where it was killed
    write_json(path, {**record, "wall_seconds": None})
    try:
        yield record
    finally:
        write_json(path, {**record, "wall_seconds": before + time.monotonic() - started})


def count_workers(workers: int | None) -> int:
    """As many as cores, if not given. Raises ArgumentError for anything but an integer from 1 on."""
    return check_integer("workers", cores() if workers is None else workers, 1)


def finished(path: Path, job: Job) -> Row | None:
    """The row of a job that is done. Raises CheckpointError if the file belongs to another job."""
    if not path.exists():
        return None
    row: Row = read_json(path)
    wrong = differences(job.fields(), {name: row.get(name) for name in job.fields()})
    if wrong:
        raise CheckpointError(f"`{path}` must be of the job that is resumed ({wrong})")
    return row


def _keep(out: Path, file: str, work: Work[Any, Any], write: Write, job: Job, report: Report[Any]) -> Row | None:
    """In a process of its own: the row is in its file before anybody hears of it."""
    row = work(job, report)
    if row is not None:
        write(_path(out, file, job), row)
    return row


def _path(out: Path, file: str, job: Job) -> Path:
    return out / JOBS / file.format(job.name)
