"""What a run leaves: one JSON file a family, written whole after every job, and the table for readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.bars import BARS
from benchmarks.layers import BATCH
from benchmarks.machine import same
from benchmarks.rows import Job, Row
from p4torch.errors import CheckpointError
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import read_json, writable_folder, write_json

SUMMARY = ("bar", "sides", "held to", "measured", "")
EXPONENTS = ("cost of", "side", "n", "exponent")
DETAILS = ("row", "sides", "ratio", "quartiles", "floor", "bar", "")


class Report:
    """The results folder. Rows of an earlier run stay if machine, code, versions and settings are the same; those of
    families that are not measured at all stay as they are, each file with the description of its own run."""

    def __init__(self, folder: Path, machine: dict[str, Any]) -> None:
        self.folder, self.machine = writable_folder(folder), machine
        self._rows: dict[str, dict[str, list[Row]]] = {}
        self._machines: dict[str, dict[str, Any]] = {}

    def plan(self, jobs: Sequence[Job], selected: Sequence[Job], resume: bool) -> list[Job]:
        """Take over earlier rows, and return the selected jobs that are to be measured: without `resume`, all."""
        again, touched = {job.title for job in selected}, {job.family for job in selected}
        for family in dict.fromkeys(job.family for job in jobs):
            known = self._read(family, alike=family in touched)
            self._rows[family] = {title: rows for title, rows in known.items() if resume or title not in again}
        return [job for job in selected if not (resume and job.title in self._rows[job.family])]

    def _read(self, family: str, alike: bool) -> dict[str, list[Row]]:
        """The rows on disk, if need be only those of a run like this one."""
        path = self._path(family)
        if not path.exists():
            return {}
        try:
            stored = read_json(path)
            if alike and not same(stored["machine"], self.machine):
                return {}
            self._machines[family] = stored["machine"]
            return {title: [Row.of_json(row) for row in rows] for title, rows in stored["jobs"].items()}
        except (CheckpointError, KeyError, TypeError, AttributeError):
            return {}

    def _path(self, family: str) -> Path:
        return self.folder / f"{family}.json"

    def add(self, job: Job, rows: list[Row]) -> None:
        """Keep the rows of a job, on disk too."""
        self._rows.setdefault(job.family, {})[job.title] = rows
        self._machines[job.family] = self.machine
        jobs = {title: [row.as_json() for row in rows] for title, rows in self._rows[job.family].items()}
        write_json(self._path(job.family), {"family": job.family, "machine": self.machine, "jobs": jobs})

    def rows(self) -> list[Row]:
        """All rows, those of the figure left out."""
        return [
            row for family, jobs in self._rows.items() if family != "scaling" for rows in jobs.values() for row in rows
        ]

    def scaling(self) -> list[Row]:
        """The rows of the figure."""
        return [row for rows in self._rows.get("scaling", {}).values() for row in rows]

    def write_table(self, exponents: Sequence[Sequence[str]]) -> Path:
        """`table.md`: the bars, every row, and the fits."""
        rows, path = self.rows(), self.folder / "table.md"
        head = (
            f"{self._measured_on()}. Float32, batch {BATCH}; one thread for n <= 64 and for whole flows, all cores for "
            "the rest. Ratios of medians, sides measured alternately; quartiles of the ratios of neighbours in time. "
            "The floor is the time of the two big products alone, relative to the same side."
        )
        parts = [head, _markdown(SUMMARY, summary(rows)), _markdown(DETAILS, [details(row) for row in rows])]
        if exponents:
            parts.append(_markdown(EXPONENTS, exponents))
        write_whole(path, lambda temporary: temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8"))
        return path

    def _measured_on(self) -> str:
        """The machines, and which families were measured on each if there are several."""
        families: dict[str, list[str]] = {}
        for family, run in self._machines.items():
            machine = run["machine"]
            name = f"{machine['cpu']}, {machine['cores']} cores, torch {run['versions'].get('torch')}"
            families.setdefault(name, []).append(family)
        if len(families) < 2:
            return "".join(families)
        return "; ".join(f"{name}: {', '.join(members)}" for name, members in families.items())


# --- cells ----------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line a bar: the range of all rows that are held to it, and whether every one of them meets it."""
    lines: list[tuple[str, ...]] = []
    for name, bar in BARS.items():
        held = [row for row in rows if row.bar == name]
        ratios = [row.ratio for row in held if row.ratio is not None]
        if ratios:
            low, high = min(ratios), max(ratios)
            measured = _number(low) if len(ratios) == 1 else f"{_number(low)} to {_number(high)}"
            verdict = f"met by {sum(map(bar.met, ratios))} of {len(ratios)}"
            verdict = "met" if all(map(bar.met, ratios)) else verdict
        else:
            measured, verdict = "", "not measured"
        without = len(held) - len(ratios)
        lines.append((bar.what, bar.sides, str(bar), measured, verdict + (f", {without} left out" if without else "")))
    return lines


def details(row: Row) -> tuple[str, ...]:
    """The cells of one row."""
    bar = row.held_to()
    held = "" if bar is None else str(bar)
    if row.ratio is None:
        return row.name, row.sides, "", "", "", held, row.reason or ""
    spread = "" if row.spread is None else " to ".join(map(_number, row.spread))
    floor = _number(row.facts["floor_ratio"]) if "floor_ratio" in row.facts else ""
    verdict = "" if bar is None else ("met" if bar.met(row.ratio) else "missed")
    return row.name, row.sides, _number(row.ratio), spread, floor, held, verdict


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(columns: Sequence[str], lines: Iterable[Sequence[str]], title: str) -> Table:
    """For a terminal."""
    made = Table(*columns, title=title, title_justify="left")
    for cells in lines:
        made.add_row(*(cell.replace("[", "\\[") for cell in cells))
    return made


def _markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows)
