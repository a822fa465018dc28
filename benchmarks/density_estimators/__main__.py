"""`python -m benchmarks.density_estimators`: options, progress, and what a run writes."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.density_estimators.problems import PROBLEMS
from benchmarks.density_estimators.report import Report, section
from benchmarks.density_estimators.training import Plan, times, train
from benchmarks.density_estimators.ways import WAYS
from benchmarks.display import say
from benchmarks.layers import Missing
from benchmarks.measure import threads
from benchmarks.properties.__main__ import selected
from p4torch.cli.options import integers
from p4torch.errors import ArgumentError, P4Error

DESCRIPTION = """\
One-line density estimators of p4torch against those of zuko and nflows. Writes OUT/metrics.json and OUT/table.md after
each cell (a problem, a way, a seed). A finished cell is kept: after Ctrl-C the same command goes on."""
EPILOG = """examples:
  python -m benchmarks.density_estimators --problems wine,breast-cancer --seeds 0,1,2
  python -m benchmarks.density_estimators --problems toy --ways "p4 NSF,zuko NSF" --steps 3000 --out runs/toy
"""

Record = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.density_estimators",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--problems", metavar="NAMES", default=",".join(PROBLEMS), help="(default: %(default)s)")
    made.add_argument("--ways", metavar="NAMES", default=",".join(WAYS), help="(default: %(default)s)")
    made.add_argument("--seeds", metavar="NUMBERS", default="0", help="(default: %(default)s)")
    made.add_argument("--steps", type=int, default=Plan.steps, help="of each training (default: %(default)s)")
    made.add_argument("--rate", type=float, default=Plan.rate, help="learning rate (default: %(default)s)")
    made.add_argument("--look", type=int, default=Plan.look, help="steps between checkpoints (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=11, help="of steps that take turns (default: %(default)s)")
    made.add_argument(
        "--out", type=Path, default=Path("results/density-estimators"), help="folder (default: %(default)s)"
    )
    return made


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The exit code: 0; 1 if a cell failed; 2 for a wrong option; 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    console = console or Console()
    try:
        problems, ways = (
            selected(options.problems, list(PROBLEMS), "--problems"),
            selected(options.ways, list(WAYS), "--ways"),
        )
        if min(options.steps, options.look, options.rounds) < 1 or not options.rate > 0:
            raise ArgumentError.of("--steps, --look, --rounds, --rate", "positive", vars(options))
        plan = Plan(options.steps, options.rate, options.look)
        report = Report(options.out, asdict(plan))
        with threads(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of peers
            return run(problems, cells(ways, integers(options.seeds, "--seeds") or (), plan, options), report, console)
    except P4Error as error:
        say(console, f"Error: {error}", "red")
        return 2
    except KeyboardInterrupt:
        say(console, "Stopped: finished cells are kept, the same command goes on.")
        return 130


def cells(
    ways: Sequence[str], seeds: Sequence[int], plan: Plan, options: argparse.Namespace
) -> dict[str, Callable[[Any], Record]]:
    """What runs for each problem, by the second part of a cell's name."""
    made: dict[str, Callable[[Any], Record]] = {"times": partial(times, WAYS, plan=plan, rounds=options.rounds)}
    for seed in seeds:
        made |= {f"{way}/{seed}": partial(train, WAYS[way], seed=seed, plan=plan) for way in ways}
    return made


def run(problems: Sequence[str], parts: dict[str, Callable[[Any], Record]], report: Report, console: Console) -> int:
    failed = False
    for name in problems:
        left = {part: call for part, call in parts.items() if not report.finished(f"{name}/{part}")}
        say(console, f"{name}: {len(parts) - len(left)} of {len(parts)} cells are there")
        problem = PROBLEMS[name]() if left else None
        for part, call in left.items():
            try:
                with console.status(f"{name}: {part}"):
                    report.add(f"{name}/{part}", call(problem))
            except Missing as error:
                say(console, str(error), "red")
                failed = True
            else:
                say(console, f"{name}: {part}: done")
        say(console, section(name, report.cells))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
