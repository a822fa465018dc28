"""From rows to what people read, and the learning rate that is taken."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
Columns = Sequence[tuple[str, Callable[[Row], str]]]


def aligned(columns: Columns, rows: Iterable[Row], *more: dict[str, str]) -> str:
    """A Markdown table whose columns line up as plain text, too; lines that follow the rows come by column."""
    titles = [title for title, _ in columns]
    cells = [titles, *([show(row) for _, show in columns] for row in rows)]
    cells += [[line.get(title, "") for title in titles] for line in more]
    widths = [max(len(line[column]) for line in cells) for column in range(len(titles))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def number(value: float | None, otherwise: float = math.inf) -> float:
    """JSON has no infinity: null stands for it."""
    return otherwise if value is None else value


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation, 0 for a single value and where one is not finite."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0


def skipped(row: Row) -> str:
    """Merges that were skipped, of all."""
    return f"{row['skipped']} of {row['merged'] + row['skipped']}"


def by_rate(rows: Iterable[Row]) -> dict[float, list[Row]]:
    """The rows by learning rate, in the order in which rates come."""
    groups: dict[float, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["learning_rate"], []).append(row)
    return groups


def best_rate(groups: dict[float, list[Row]], worth: Callable[[list[Row]], Any]) -> float:
    """The learning rate whose rows, one a seed, have the lowest worth; the first of equals."""
    return min(groups, key=lambda rate: worth(groups[rate]))
