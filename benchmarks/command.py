"""`python -m benchmarks`: options, progress, and what a run writes."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import figure, machine, peers, report, short
from benchmarks.display import Shown, say
from benchmarks.families import all_jobs
from benchmarks.measure import Effort
from benchmarks.rows import Job, Row
from p4torch.errors import ArgumentError, P4Error
from p4torch.runs.folder import writable_folder

EPILOG = """examples:
  python -m benchmarks --only orthogonal,linear/Invertible-512 --rounds 11
  python -m benchmarks --resume             go on after Ctrl-C: rows of the same machine, code and versions stay
  python -m benchmarks --short --check      what `make check` runs: counts and a few ratios, no peers
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="p4torch against plain layers and against peers, alternately in one process. Prints the table of "
        "bars, writes JSON, table.md and the figure of cost against n. Ctrl-C keeps the rows that are done.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--only", metavar="NAMES", help="families or jobs of --list, with commas between them")
    made.add_argument("--rounds", type=int, default=Effort.rounds, help="rounds of each job (default: %(default)s)")
    made.add_argument(
        "--seconds", type=float, default=Effort.seconds, help="after which a job ends early (default: %(default)g)"
    )
    made.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder (default: %(default)s)")
    made.add_argument("--resume", action="store_true", help="keep rows that are in the folder already")
    made.add_argument("--list", action="store_true", help="show all jobs, and stop")
    made.add_argument("--short", action="store_true", help="counts and a few ratios, recorded in OUT/short.json")
    made.add_argument(
        "--check",
        action="store_true",
        help=f"with --short: compare with the recorded file, fail on what is {short.TOLERANCE:g} times worse",
    )
    return made


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The exit code: 0; 1 for a failed check or a job that failed; 2 for a wrong option; 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    console = console or Console(width=None if sys.stdout.isatty() else 160)
    try:
        if options.rounds < 1 or not options.seconds > 0:
            raise ArgumentError.of("--rounds, --seconds", "positive", f"{options.rounds}, {options.seconds}")
        if options.check and not options.short:
            raise ArgumentError.of("--check", "used with --short", "it alone")
        jobs = short.jobs() if options.short else all_jobs()
        selected = select(jobs, options.only)
        if options.list:
            for job in selected:
                say(console, job.title)
            return 0
        run = _short if options.short else _full
        return run(jobs, selected, options, console)
    except P4Error as error:
        say(console, f"Error: {error}", "red")
        return 2


def select(jobs: Sequence[Job], only: str | None) -> list[Job]:
    """The jobs asked for by family or by title."""
    if only is None:
        return list(jobs)
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if not any(name in (job.family, job.title) for job in jobs)]
    if unknown or not names:
        raise ArgumentError.of("--only", "families or jobs that --list shows", ", ".join(unknown) or repr(only))
    return [job for job in jobs if job.family in names or job.title in names]


# --- running --------------------------------------------------------------------------------------------------


def measure(job: Job, effort: Effort) -> list[Row]:
    """The rows of a job. One that fails as a whole gives a row that says so."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of peers
            return job.run(effort)
    except Exception as error:
        return [Row(job.title, "", reason=f"failed: {type(error).__name__}: {error}", failed=True)]


def _full(jobs: Sequence[Job], selected: Sequence[Job], options: argparse.Namespace, console: Console) -> int:
    effort = Effort(options.rounds, options.seconds)
    description = machine.description(rounds=effort.rounds, seconds=effort.seconds)
    kept = report.Report(options.out, description)
    left = kept.plan(jobs, selected, options.resume)
    for package, version in peers.versions().items():
        if version is None:
            say(console, f'peer {package} is missing: its rows are left out (pip install -e ".[bench]")')
    if len(left) < len(selected):
        say(console, f"{len(selected) - len(left)} of {len(selected)} jobs are done already")
    interrupted, failed = False, []
    with Shown(left, console) as shown:
        try:
            for job in left:
                shown.started(job)
                rows = measure(job, effort)
                kept.add(job, rows)
                shown.finished(job, rows)
                failed += [row.name for row in rows if row.failed]
        except KeyboardInterrupt:
            interrupted = True
    _close(kept, console)
    if failed:
        say(console, f"{len(failed)} rows failed: {'; '.join(failed)}", "red")
    if interrupted:
        say(console, "interrupted: rows so far are kept, --resume goes on")
    return 130 if interrupted else int(bool(failed))


def _close(kept: report.Report, console: Console) -> None:
    """Tables, the figure and where they are."""
    rows = kept.rows()
    exponents = figure.exponents(figure.curves(kept.scaling()))
    if rows:
        console.print(report.table(report.DETAILS, map(report.details, rows), "rows"))
        console.print(report.table(report.SUMMARY, report.summary(rows), "bars"))
    if exponents:
        console.print(report.table(report.EXPONENTS, exponents, "exponents of the cost against n"))
    written = [kept.write_table(exponents)]
    drawn = figure.draw(kept.scaling(), kept.folder)
    if drawn is not None:
        written.append(drawn)
    say(console, f"written: {', '.join(map(str, written))}, {kept.folder}/*.json")


# --- the short form -------------------------------------------------------------------------------------------


def _short(jobs: Sequence[Job], selected: Sequence[Job], options: argparse.Namespace, console: Console) -> int:
    path = writable_folder(options.out) / "short.json"
    before = short.recorded(path) if options.check else None
    values, failed = _values(selected, console)
    if before is None:
        if len(selected) < len(jobs):
            raise ArgumentError.of("--only", "left out where the short form is recorded", options.only)
        short.record(path, values, machine.description())
        say(console, f"recorded {len(values)} values in {path}")
        return int(failed)
    titles = {name for name in before if any(name.startswith(f"{job.name}: ") for job in selected)}
    before = {name: value for name, value in before.items() if name in titles}
    slower = short.worse(values, before)
    again = [job for job in selected if any(line.startswith(f"{job.name}: ") for line in slower) and job.cost > 1]
    if again:  # a time may have been unlucky: its better one of two counts
        second, _ = _values(again, console)
        slower = short.worse({name: min(value, second.get(name, value)) for name, value in values.items()}, before)
    new = [name for name in values if name not in before]
    if new:
        say(console, f"not recorded yet: {', '.join(new)} (python -m benchmarks --short)")
    for line in slower:
        say(console, f"worse: {line}", "red")
    if not slower:
        say(console, f"{len(before)} values, none worse than {short.TOLERANCE:g} times the recorded one")
    return int(bool(slower) or failed)


def _values(jobs: Sequence[Job], console: Console) -> tuple[short.Values, bool]:
    values: short.Values = {}
    failed = False
    with Shown(jobs, console) as shown:
        for job in jobs:
            shown.started(job)
            for row in measure(job, short.EFFORT):
                if row.ratio is not None:
                    values[row.name] = row.ratio
                else:
                    failed = failed or row.failed
                    say(console, f"{row.name}: {row.reason}")
            shown.finished(job, [])
    return values, failed
