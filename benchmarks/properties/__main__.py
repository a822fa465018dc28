"""`python -m benchmarks.properties`: options, progress, and what a run writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.display import say
from benchmarks.layers import BATCH, Missing
from benchmarks.measure import Effort, threads
from benchmarks.properties import measures, report
from benchmarks.properties.subjects import SUBJECTS, Subject
from p4torch.errors import ArgumentError, P4Error
from p4torch.runs.folder import read_json, writable_folder

PARTS = ("training", "directions", "times")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.properties",
        description="What each property keeps and costs. Writes OUT/metrics.json and OUT/table.md after every "
        "property; what is not measured again stays. Times want a quiet machine.",
    )
    made.add_argument("--only", metavar="NAMES", help="properties, with commas between them (default: all)")
    made.add_argument("--parts", metavar="PARTS", default=",".join(PARTS), help="of %(default)s (default: all)")
    made.add_argument("--steps", type=int, default=10_000, help="of the training (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=Effort.rounds, help="of the times (default: %(default)s)")
    made.add_argument("--seconds", type=float, default=Effort.seconds, help="after which times end early")
    made.add_argument("--out", type=Path, default=Path("results/properties"), help="folder (default: %(default)s)")
    return made


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The exit code: 0; 1 where a measure failed; 2 for a wrong option."""
    options = parser().parse_args(arguments)
    console = console or Console()
    try:
        if options.steps < measures.EVERY or options.rounds < 1 or not options.seconds > 0:
            raise ArgumentError.of("--steps, --rounds", f"at least {measures.EVERY} and 1", "less")
        parts = selected(options.parts, PARTS, "--parts")
        kinds = list(dict.fromkeys(subject.kind for subject in SUBJECTS))
        wanted = selected(options.only, kinds, "--only") if options.only else kinds
        return run([subject for subject in SUBJECTS if subject.kind in wanted], parts, options, console)
    except P4Error as error:
        say(console, f"Error: {error}", "red")
        return 2


def selected(names: str, known: Sequence[str], argument: str) -> list[str]:
    """The names given, in the order of the known ones."""
    given = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        raise ArgumentError.of(argument, f"among {', '.join(known)}", ", ".join(unknown) or "nothing")
    return [name for name in known if name in given]


def run(subjects: Sequence[Subject], parts: Sequence[str], options: argparse.Namespace, console: Console) -> int:
    folder = writable_folder(options.out)
    described = machine.description(steps=options.steps, rounds=options.rounds, seconds=options.seconds)
    described["command"] = described["command"].replace("-m benchmarks", "-m benchmarks.properties", 1)
    path = folder / "metrics.json"
    before: report.Metrics = read_json(path)["properties"] if path.exists() else {}
    metrics = {subject.name: dict(before.get(subject.name, {})) for subject in SUBJECTS}
    effort, failed = Effort(options.rounds, options.seconds), False
    made: dict[str, Callable[[Subject], dict[str, Any]]] = {
        "training": lambda subject: measures.training(subject, options.steps),
        "directions": measures.directions,
        "times": lambda subject: measures.times(subject, effort),
    }
    for subject in subjects:
        for part in parts:
            result = measured(made[part], subject)
            failed |= bool(result.pop("failed", False))
            metrics[subject.name][part] = {**result, "made": {key: described[key] for key in report.MADE}}
        report.write(folder, described, {name: result for name, result in metrics.items() if result}, settings(options))
        say(console, " | ".join(report.row(subject.name, metrics[subject.name])))
    say(console, f"written: {path}, {folder / 'table.md'}")
    return int(failed)


def measured(measure: Callable[[Subject], dict[str, Any]], subject: Subject) -> dict[str, Any]:
    """The measure; or the reason why there is none: one property must not end the run."""
    try:
        with threads(1):  # `times` takes all cores
            return measure(subject)
    except Missing as missing:
        return {"reason": str(missing)}
    except Exception as error:
        return {"reason": f"fails: {type(error).__name__}: {error}", "failed": True}


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the words of the table state."""
    return {
        "steps": f"{options.steps:,}",
        "every": measures.EVERY,
        "features": measures.FEATURES,
        "small": measures.SMALL,
        "large": measures.LARGE,
        "batch": BATCH,
    }


if __name__ == "__main__":
    sys.exit(main())
