"""How a run is shown: a bar with the time left on a terminal, a line for each row anywhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import report
from benchmarks.rows import Job, Row


def say(console: Console, text: str, style: str | None = None) -> None:
    """A line as it is: no markup, no wrapping."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


class Shown:
    """A bar with the time left on a terminal, and a line for each row anywhere."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.console, self.total = console, len(jobs)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
        )
        self.task = self.bar.add_task("", total=round(sum(job.cost for job in jobs)))

    def __enter__(self) -> Shown:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def started(self, job: Job) -> None:
        self.bar.update(self.task, description=job.title)

    def finished(self, job: Job, rows: Sequence[Row]) -> None:
        self.bar.advance(self.task, job.cost)
        for row in rows:
            say(self.console, _line(job, row))


def _line(job: Job, row: Row) -> str:
    value = row.facts.get("value")
    if value is None:
        return f"{job.title}: {'  '.join(cell for cell in report.details(row) if cell)}"
    shown = f"{value / 1e6:.3g} MB" if row.facts["unit"] == "bytes" else f"{1e3 * value:.3g} ms"
    return f"{job.title}: {row.sides}: {shown}"
