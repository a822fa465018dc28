"""`metrics.json`, with one record for each finished cell, and `table.md`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.density_estimators.ways import OURS, WAYS
from p4torch.errors import CheckpointError
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import differences, read_json, writable_folder, write_compact

HEAD = """\
# Densities in one line

Test log-likelihoods in nats a row, of raw values; medians over seeds (least to largest). All ways train alike: Adam at
one rate, the same number of steps, the same batches; the checkpoint that is best on validation rows counts, the
untrained model among them. Peers have their defaults and get standardised features. Models of p4torch are
`models.NSF(n)` and so on, after `fit_scale` of the training rows. Milliseconds a step are medians of CPU times of steps
that took turns in one process on one thread, optimizer and merges included.
"""


class Report:
    """The cells of a folder. Each is written when it is finished."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = writable_folder(folder), settings
        self.path = folder / "metrics.json"
        kept = read_json(self.path) if self.path.exists() else {"settings": settings, "cells": {}}
        wrong = differences(kept["settings"], settings)
        if wrong:
            raise CheckpointError(f"`{self.path}` must hold cells with these settings (take another --out): {wrong}")
        self.cells: dict[str, dict[str, Any]] = kept["cells"]

    def finished(self, key: str) -> bool:
        return key in self.cells

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Write a cell and the table of all."""
        made = machine.description()
        made["command"] = made["command"].replace("-m benchmarks", "-m benchmarks.density_estimators", 1)
        self.cells[key] = record
        write_compact(self.path, {"made": made, "settings": self.settings, "cells": self.cells})
        text = HEAD + self._origin(made) + "".join(section(problem, self.cells) for problem in self._problems())
        write_whole(self.folder / "table.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _problems(self) -> list[str]:
        return list(dict.fromkeys(key.split("/")[0] for key in self.cells))

    def _origin(self, made: dict[str, Any]) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"\n`{made['command']}` ({settings}; {made['machine']['cpu']}, torch {made['versions']['torch']})\n"


def section(problem: str, cells: dict[str, dict[str, Any]]) -> str:
    """One problem as a Markdown table; `of the best peer` compares with the peer of the highest log-likelihood."""
    found = {way: _records(problem, way, cells) for way in WAYS}
    times: dict[str, list[float]] = cells.get(f"{problem}/times", {}).get("seconds", {})
    medians = {way: statistics.median(values) for way, values in times.items()}
    tests = {way: statistics.median(_tests(records)) for way, records in found.items() if records}
    peers = [way for way in tests if way not in OURS]
    best = max(peers, key=tests.__getitem__, default=None)
    lines = [
        f"\n## {problem}\n",
        "| way | test log-likelihood | of the best peer | best step | ms a step | of the best peer's | numbers |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way, records in found.items():
        if not records:
            continue
        over = "" if best is None else f"{tests[way] - tests[best]:+.2f}"
        ratio = f"{medians[way] / medians[best]:.2f}" if best in medians and way in medians else ""
        time = f"{1e3 * medians[way]:.1f}" if way in medians else ""
        step = f"{statistics.median(record['best_step'] for record in records):g}"
        mark = "**" if way == best else ""
        cols = [f"{mark}{way}{mark}", spread(_tests(records)), over, step, time, ratio, f"{records[0]['parameters']:,}"]
        lines.append(f"| {' | '.join(cols)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the largest if there are several."""
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def _records(problem: str, way: str, cells: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for key, record in cells.items() if key.startswith(f"{problem}/{way}/")]


def _tests(records: Sequence[dict[str, Any]]) -> list[float]:
    return [record["test"] for record in records]
