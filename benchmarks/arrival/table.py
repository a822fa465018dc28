"""Cells of the tables: medians over seeds, with their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.arrival.training import Record
from benchmarks.properties.report import markdown

__all__ = ["grouped", "markdown", "median", "middle", "number", "refused"]


def grouped(records: Sequence[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records that agree in these keys, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(key) for key in keys), []).append(record)
    return groups


def median(records: Sequence[Record], key: str) -> float:
    """Over all records; one that lacks the value (JSON has no infinity) counts as infinite."""
    return statistics.median(_values(records, key))


def middle(records: Sequence[Record], key: str) -> str:
    """The median and, in brackets, the least and the largest; or why there is none."""
    if "reason" in records[0]:
        return str(records[0]["reason"])
    values = _values(records, key)
    text = number(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({number(min(values))} to {number(max(values))})"


def _values(records: Sequence[Record], key: str) -> list[float]:
    values = [record.get(key) for record in records]
    return [math.inf if value is None else float(value) for value in values]


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"


def refused(records: Sequence[Record]) -> str:
    """Merges that were refused, of all."""
    if any(record.get("merged") is None for record in records):
        return "-"
    skipped = sum(record["skipped"] for record in records)
    return f"{skipped} of {skipped + sum(record['merged'] for record in records)}"
