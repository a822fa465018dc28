"""How far a run is: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from p4torch.experiments.patches.config import Job
from p4torch.experiments.patches.job import Row


class Steps:
    """Counts the steps of finished jobs, out of all that are to come (tuning and full trainings)."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._done, self._skipped = console, total, 0, 0
        self._started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # The window of the estimate holds several jobs, which report in their end alone.
        self._bar = Progress(*columns, console=console, speed_estimate_period=300, disable=not console.is_terminal)
        self._task = self._bar.add_task("steps", total=total)

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def skip(self, jobs: Iterable[Job]) -> None:
        """Jobs that an earlier run has done."""
        steps = sum(job.steps for job in jobs)
        self._done, self._skipped = self._done + steps, self._skipped + steps
        self._bar.update(self._task, completed=self._done)

    def finished(self, job: Job, row: Row) -> None:
        """A job has its row."""
        self._done += job.steps
        self._bar.update(self._task, completed=self._done)
        text = f"{job.title}: {_result(row)}"
        if not self._console.is_terminal:
            rate = (self._done - self._skipped) / (time.monotonic() - self._started)
            left = (self._total - self._done) / rate
            text += f"  ({self._done}/{self._total} steps, {left / 60:.1f} min left)"
        self.message(text)

    def message(self, text: str) -> None:
        """Something for the reader."""
        self._bar.console.print(text, highlight=False, soft_wrap=True)


def _result(row: Row) -> str:
    if row["diverged"]:
        return "diverged"
    return f"held out {row['held_out']:.2f} nats, {row['step_milliseconds']:.1f} ms a step"
