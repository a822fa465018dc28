"""From the rows of jobs to the lines of the tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from experiments.linear import settings
from experiments.linear.config import TOLERANCE, Job
from experiments.linear.cost import INTERVALS
from experiments.linear.suites import PLAIN, Config, Line
from experiments.tables import Columns, Row, aligned, best_rate, by_rate, number, skipped


def summarise(config: Config, rows: list[Row]) -> list[Row]:
    """One row for each line, at its best learning rate, compared with the line that it refers to."""
    by_job = {Job.of(row): row for row in rows}
    summary = [(line, _summary(line, by_job)) for line in config.lines()]
    steps = {(line.suite, line.jobs[0].problem, line.title): row["steps_mean"] for line, row in summary}
    for line, row in summary:
        reference = steps.get((line.suite, line.jobs[0].problem, line.reference or ""))
        known = reference is not None and row["steps_mean"] is not None
        row["ratio"] = row["steps_mean"] / reference if known else None
    return [row for _, row in summary]


def _summary(line: Line, by_job: dict[Job, Row]) -> Row:
    """The rate at which all seeds arrive soonest; where none does, the one with the lowest loss."""
    groups = by_rate(by_job[job] for job in line.jobs)
    rate, job = best_rate(groups, _worth), line.jobs[0]
    rows = groups[rate]
    arrived = [row["steps_made"] for row in rows if row["status"] == "reached"]
    return {
        "suite": line.suite,
        "group": line.group,
        "title": line.title,
        **{name: value for name, value in job.fields().items() if name not in ("seed", "learning_rate", "steps")},
        "learning_rate": rate,
        "rates_tried": list(groups),
        "seeds": [row["seed"] for row in rows],
        "limit": job.steps,
        "arrived": len(arrived),
        "diverged": sum(row["status"] == "diverged" for row in rows),
        "steps_mean": statistics.fmean(arrived) if len(arrived) == len(rows) else None,
        "steps_std": statistics.stdev(arrived) if len(arrived) == len(rows) > 1 else 0.0,
        "loss": statistics.fmean(number(row["loss"]) for row in rows),
        "components_right": sum(row["component_right"] for row in rows),
        "parameters": rows[0]["parameters"],
        "step_milliseconds": 1000 * statistics.median(row["step_seconds"] for row in rows),
        "inverse_error": _largest(rows, "inverse_error"),
        "worst_residual": _largest(rows, "worst_residual"),
        "logabsdet_error": _largest(rows, "logabsdet_error"),
        "sign_right": None if rows[0]["sign_right"] is None else all(row["sign_right"] for row in rows),
        "merged": sum(row["merged"] for row in rows),
        "skipped": sum(row["skipped"] for row in rows),
    }


def _worth(rows: list[Row]) -> tuple[int, float]:
    late = sum(row["status"] != "reached" for row in rows)
    return late, statistics.fmean(number(row["loss"] if late else row["steps_made"]) for row in rows)


def _largest(rows: list[Row], name: str) -> float | None:
    """None for a plain matrix, which tracks nothing."""
    return None if rows[0]["sign_right"] is None else max(number(row[name]) for row in rows)


# --- for people -------------------------------------------------------------------------------------------------------


def _steps(row: Row) -> str:
    if row["steps_mean"] is not None:
        spread = f" ± {row['steps_std']:.0f}" if len(row["seeds"]) > 1 else ""
        return f"{row['steps_mean']:.0f}{spread}"
    what = "diverged" if row["diverged"] == len(row["seeds"]) else f"> {row['limit']}"
    return f"{what} ({row['arrived']} of {len(row['seeds'])})" if row["arrived"] else what


def _ratio(row: Row) -> str:
    return "" if row["ratio"] is None else f"{row['ratio']:.2f}"


def _error(name: str) -> Callable[[Row], str]:
    return lambda row: "" if row[name] is None else f"{row[name]:.1e}"


def _ratio_at(every: int) -> Callable[[Row], str]:
    return lambda row: f"{row['step_ratio_by_interval'][str(every)]:.2f}"


_SETTING: Columns = (("setting", lambda row: row["title"]),)
_RESULT: Columns = (
    ("rate", lambda row: f"{row['learning_rate']:g}"),
    (f"steps to {TOLERANCE:.0e}", _steps),
    ("ratio", _ratio),
    ("last loss", lambda row: f"{row['loss']:.1e}"),
    ("sign of det W right", lambda row: f"{row['components_right']} of {len(row['seeds'])}"),
    ("ms/step", lambda row: f"{row['step_milliseconds']:.2f}"),
)
_TRACKED: Columns = (
    ("inverse's error", _error("inverse_error")),
    ("largest residual", _error("worst_residual")),
    ("log abs det's error", _error("logabsdet_error")),
    ("its sign", lambda row: {None: "", True: "right", False: "wrong"}[row["sign_right"]]),
    ("skipped", lambda row: skipped(row) if row["merged"] else ""),
)
_TARGET: Columns = (("target", lambda row: row["problem"]),)
_GROUP: Columns = (("part", lambda row: row["group"]),)
_COST: Columns = (
    ("n", lambda row: str(row["size"])),
    ("rank", lambda row: str(row["rank"])),
    ("plain, ms", lambda row: f"{1000 * row['plain_seconds']:.2f}"),
    ("P4Inv, ms", lambda row: f"{1000 * row['p4inv_seconds']:.2f}"),
    ("ratio", lambda row: f"{row['step_ratio']:.2f}"),
    *((f"at N = {every}", _ratio_at(every)) for every in INTERVALS),
    ("without merges", lambda row: f"{row['step_ratio_without_merges']:.2f}"),
    ("a merge, ms", lambda row: f"{1000 * row['merge_seconds']:.2f}"),
    ("quartiles of the ratio", lambda row: "{:.2f} to {:.2f}".format(*row["step_ratio_quartiles"])),
)
_TABLES: dict[str, tuple[str, Columns]] = {
    "companion": ("The companion's targets, three ways", (*_TARGET, *_SETTING, *_RESULT, *_TRACKED)),
    "equal-rate": ("SO(128), one learning rate for all", (*_SETTING, *_RESULT, *_TRACKED)),
    "gap": ("SO(64), each line at its own best learning rate", (*_GROUP, *_SETTING, *_RESULT, *_TRACKED)),
    "inverse": ("SO(128) through the inverse", (*_SETTING, *_RESULT, *_TRACKED)),
    "cost": (
        f"A training step, merges included: rank n/4, N = {settings.PROPOSED['every']}, against the plain layer",
        _COST,
    ),
}


def markdown(rows: list[Row], cost: list[Row]) -> str:
    """A table for each suite."""
    parts = []
    for suite, (title, columns) in _TABLES.items():
        chosen = cost if suite == "cost" else [row for row in rows if row["suite"] == suite]
        if chosen:
            parts.append(f"## {title}\n\n{aligned(columns, chosen)}")
    return "\n".join(parts)


def claims(rows: list[Row], cost: list[Row]) -> list[str]:
    """The three sentences that the tables are there for."""
    by_line = {(row["suite"], row["group"], row["title"]): row for row in rows}
    said = []
    equal = by_line.get(("equal-rate", "", settings.CLAIM_LINE))
    if equal and equal["ratio"] is not None:
        said.append(
            f"Equal rate, SO(128), rank 8, gradient directions: {equal['ratio']:.2f} of the plain matrix's steps."
        )
    best, plain = by_line.get(("gap", "proposed", "proposed scheme")), by_line.get(("gap", "grid", PLAIN))
    if best and plain and best["ratio"] is not None:
        said.append(
            f"Own best rate, SO(64), rank n/4: {best['steps_mean']:.0f} steps against {plain['steps_mean']:.0f} of the "
            f"plain matrix, a ratio of {best['ratio']:.2f}."
        )
    if cost:
        shown = ", ".join(f"{row['step_ratio']:.2f} at n = {row['size']}" for row in cost)
        said.append(f"A step of rank n/4 with its merges takes, of the plain layer's: {shown}.")
    return said
