"""How jobs are shown: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from p4torch.experiments.density.config import Job
from p4torch.experiments.density.config import Progress as Step


class Bars:
    """A bar for each running job, with time left, loss and merges skipped, and one for all of them."""

    def __init__(self, jobs: list[Job], console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._all = self._bars.add_task("all jobs, steps", total=sum(job.steps for job in jobs), note="")
        self._tasks: dict[Job, TaskID] = {}
        self._steps: dict[Job, int] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, job: Job) -> None:
        self._tasks[job] = self._bars.add_task(job.title, total=job.steps, note="starting")

    def progressed(self, job: Job, progress: Step) -> None:
        note = f"loss {progress.loss:.3f}  skipped {progress.skipped}"
        self._bars.update(self._tasks[job], completed=progress.step, note=note)
        self._count(job, progress.step)
        if progress.step >= job.steps:
            self._bars.update(self._tasks[job], note="measuring")

    def finished(self, job: Job, row: dict[str, Any] | None) -> None:
        self._bars.remove_task(self._tasks[job])
        if row is not None:
            self._count(job, job.steps)
            self._bars.console.print(_result(job, row), highlight=False)

    def message(self, text: str) -> None:
        self._bars.console.print(text)

    def _count(self, job: Job, step: int) -> None:
        self._steps[job] = step
        self._bars.update(self._all, completed=sum(self._steps.values()))


class Lines:
    """A line for each job at its start, its end, and every ten seconds between."""

    def __init__(self, jobs: list[Job], console: Console) -> None:
        self._console, self._total, self._done = console, len(jobs), 0
        self._told: dict[Job, float] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def started(self, job: Job) -> None:
        self._told[job] = time.monotonic()
        self.message(f"{job.title}: start")

    def progressed(self, job: Job, progress: Step) -> None:
        if time.monotonic() - self._told[job] >= 10:
            self._told[job] = time.monotonic()
            self.message(
                f"{job.title}: step {progress.step}/{job.steps}, loss {progress.loss:.3f}, skipped {progress.skipped}"
            )

    def finished(self, job: Job, row: dict[str, Any] | None) -> None:
        if row is not None:
            self._done += 1
            self.message(f"{_result(job, row)}  ({self._done}/{self._total} jobs)")

    def message(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def display(jobs: list[Job], console: Console) -> Bars | Lines:
    """Bars on a terminal, lines in a file or a pipe."""
    return Bars(jobs, console) if console.is_terminal else Lines(jobs, console)


def _result(job: Job, row: dict[str, Any]) -> str:
    return (
        f"{job.title}: KL {row['kl']:.4f} nats, leakage {100 * row['leakage']:.2f} %, {row['skipped']} merges skipped"
    )
