"""`python -m benchmarks.arrival`: options, progress, and what a run writes."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.arrival import costs, race, rates
from benchmarks.arrival.cells import Cell, Request, Task
from benchmarks.arrival.comparisons import COMPARISONS
from benchmarks.arrival.report import Report
from benchmarks.arrival.training import Record
from benchmarks.arrival.ways import Options
from benchmarks.display import say
from benchmarks.properties.__main__ import selected
from p4torch.cli.options import integers
from p4torch.errors import ArgumentError, P4Error
from p4torch.runs.progress import duration

TASKS: dict[str, Task] = {
    **{name: comparison.task() for name, comparison in COMPARISONS.items()},
    "e": rates.TASK,
    "f": race.TASK,
    "g": costs.TASK,
}
SIDES = ("p4", "peers")
DESCRIPTION = """\
Does training with p4torch's defaults arrive, compared with what people use today? Writes OUT/metrics.json and
OUT/table.md after each task. A finished task is kept: after Ctrl-C the same command goes on."""
EPILOG = """examples:
  python -m benchmarks.arrival --tasks a,b                          the defaults on two tasks
  python -m benchmarks.arrival --tasks f --p4 rank=16,every=5,directions=gradient --out runs/arrival
  python -m benchmarks.arrival --tasks e --sizes 32 --seeds 0       one size, one seed

tasks:
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.arrival",
        description=DESCRIPTION,
        epilog=EPILOG + "\n".join(f"  {name}  {task.title}" for name, task in TASKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--tasks", metavar="NAMES", default=",".join(TASKS), help="(default: %(default)s)")
    made.add_argument("--seeds", metavar="NUMBERS", default="0,1,2", help="(default: %(default)s)")
    made.add_argument(
        "--steps-scale", metavar="X", type=float, default=1.0, help="times all numbers of steps (default: 1)"
    )
    made.add_argument("--sizes", metavar="NUMBERS", help="n in tasks e, f and g (default: their own)")
    made.add_argument(
        "--p4",
        metavar="KEY=VALUE,...",
        default="",
        help="options of p4.perturb; every and other options of the schedule go to p4.MergeScheduler (default: none)",
    )
    made.add_argument("--sides", metavar="NAMES", default=",".join(SIDES), help="what runs (default: %(default)s)")
    made.add_argument("--out", type=Path, default=Path("results/arrival"), help="folder (default: %(default)s)")
    made.add_argument("--force", action="store_true", help="run finished tasks again")
    return made


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The exit code: 0; 2 for a wrong option; 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    console = console or Console()
    try:
        names, request = selected(options.tasks, list(TASKS), "--tasks"), asked(options)
        return run(names, request, Report(options.out, TASKS), options.force, console)
    except P4Error as error:
        say(console, f"Error: {error}", "red")
        return 2
    except KeyboardInterrupt:
        say(console, "Stopped: finished tasks are kept, the same command goes on.")
        return 130


def asked(options: argparse.Namespace) -> Request:
    """The options as a request. Raises ArgumentError."""
    if not 0 < options.steps_scale < math.inf:
        raise ArgumentError.of("--steps-scale", "a positive number", options.steps_scale)
    sizes = integers(options.sizes, "--sizes")
    if sizes is not None and min(sizes) < 2:
        raise ArgumentError.of("--sizes", "at least 2", options.sizes)
    seeds = integers(options.seeds, "--seeds") or ()
    sides = tuple(selected(options.sides, SIDES, "--sides"))
    return Request(seeds, options.steps_scale, Options.of_text(options.p4), sizes, sides)


def run(names: Sequence[str], request: Request, report: Report, force: bool, console: Console) -> int:
    settings = request.settings()
    done = [name for name in names if not force and report.finished(name, settings)]
    cells = {name: TASKS[name].cells(request) for name in names if name not in done}
    for name in done:
        say(console, f"task {name} is finished already (--force runs it again)")
    progress = Progress([cell for part in cells.values() for cell in part], console)
    for name, part in cells.items():
        records: list[Record] = []
        for cell in part:
            with console.status(f"task {name}: {cell.title}"):
                records += cell.run(records)
            progress.finished(name, cell)
        report.add(name, settings, records)
        say(console, report.section(name))
    say(console, f"written: {report.path}, {report.write_table()}")
    return 0


class Progress:
    """A line for each part that is done, with the time left: that of the parts so far, by their estimated cost."""

    def __init__(self, cells: Sequence[Cell], console: Console) -> None:
        self.console, self.total, self.count = console, sum(cell.cost for cell in cells), len(cells)
        self.start, self.spent, self.done = time.monotonic(), 0.0, 0

    def finished(self, name: str, cell: Cell) -> None:
        self.spent, self.done = self.spent + cell.cost, self.done + 1
        left = (time.monotonic() - self.start) * (self.total - self.spent) / self.spent
        count = f"{self.done} of {self.count}"
        say(self.console, f"task {name}: {cell.title}: done ({count}, about {duration(left)} left)")


if __name__ == "__main__":
    sys.exit(main())
