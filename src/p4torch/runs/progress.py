"""How jobs are shown: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from p4torch.runs.pool import Row, Titled


class Counted(Titled, Protocol):
    """A job whose length is known."""

    @property
    def steps(self) -> int:
        """Its length, in any unit."""


class Noted(Protocol):
    """How far a job is, and what else there is to say."""

    @property
    def step(self) -> int:
        """Steps that are done."""

    @property
    def note(self) -> str:
        """For people."""


#: Columns of a terminal that all there is to tell of a job needs.
WIDE = 120

J = TypeVar("J", bound=Counted)
#: A finished job in one line.
Result = Callable[[J, Row], str]


class Bars(Generic[J]):
    """A bar for each running job, with time left and its note, and one for all of them."""

    def __init__(self, jobs: Sequence[J], console: Console, result: Result[J]) -> None:
        self._result = result
        self._bars = Progress(*_columns(console.width), console=console)
        self._all = self._bars.add_task("all, steps", total=sum(job.steps for job in jobs), note="")
        self._tasks: dict[J, TaskID] = {}
        self._steps: dict[J, int] = {}

    def __enter__(self) -> Bars[J]:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, job: J) -> None:
        self._tasks[job] = self._bars.add_task(job.title, total=job.steps, note="starting")

    def progressed(self, job: J, progress: Noted) -> None:
        self._bars.update(self._tasks[job], completed=progress.step, note=progress.note)
        self._count(job, progress.step)
        if progress.step >= job.steps:
            self._bars.update(self._tasks[job], note="finishing")

    def finished(self, job: J, row: Row | None) -> None:
        self._bars.remove_task(self._tasks[job])
        if row is not None:
            self._count(job, job.steps)
            self._bars.console.print(self._result(job, row), highlight=False)

    def message(self, text: str) -> None:
        self._bars.console.print(text)

    def _count(self, job: J, step: int) -> None:
        self._steps[job] = step
        self._bars.update(self._all, completed=sum(self._steps.values()))


def _columns(width: int) -> tuple[ProgressColumn, ...]:
    """On a narrow terminal counts of steps become a percentage, and notes are left out: nothing is cut short."""
    if width < WIDE:
        return TextColumn("{task.description}"), BarColumn(8), TaskProgressColumn(), TimeRemainingColumn(compact=True)
    note = TextColumn("{task.fields[note]}")
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note


class Lines(Generic[J]):
    """A line for each job at its start, its end, and every ten seconds between."""

    def __init__(self, jobs: Sequence[J], console: Console, result: Result[J]) -> None:
        self._console, self._total, self._done, self._result = console, len(jobs), 0, result
        self._begun, self._steps, self._steps_done = time.monotonic(), sum(job.steps for job in jobs), 0
        self._last_line: dict[J, float] = {}
        self._first: dict[J, tuple[float, int]] = {}

    def __enter__(self) -> Lines[J]:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def started(self, job: J) -> None:
        self._last_line[job] = time.monotonic()
        self.message(f"{job.title}: start")

    def progressed(self, job: J, progress: Noted) -> None:
        now = time.monotonic()
        begun, first = self._first.setdefault(job, (now, progress.step))
        if now - self._last_line[job] >= 10:
            self._last_line[job] = now
            made = progress.step - first
            left = f", {duration((now - begun) / made * (job.steps - progress.step))} left" if made > 0 else ""
            self.message(f"{job.title}: step {progress.step}/{job.steps}, {progress.note}{left}")

    def finished(self, job: J, row: Row | None) -> None:
        if row is not None:
            self._done, self._steps_done = self._done + 1, self._steps_done + job.steps
            rate = (time.monotonic() - self._begun) / max(1, self._steps_done)
            left = duration(rate * (self._steps - self._steps_done))
            self.message(f"{self._result(job, row)}  ({self._done}/{self._total} jobs, about {left} left)")

    def message(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def display(jobs: Sequence[J], console: Console, result: Result[J]) -> Bars[J] | Lines[J]:
    """Bars on a terminal, lines in a file or a pipe. `result` puts a finished job into words."""
    return Bars(jobs, console, result) if console.is_terminal else Lines(jobs, console, result)


def say(console: Console, text: str) -> None:
    """Print a text as it is, in one line however long it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """For people: "40 s", "7 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
