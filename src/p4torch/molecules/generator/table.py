"""Rows of generators as a table for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]

#: Shares below it are not told apart.
LEAST = 1e-4

#: Titles of the columns, and a row's cells.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: str(row["model"]) + (f", seed {row['seed']}" if row.get("seed") else ""),
    "parameters": lambda row: f"{row['parameters']:,}" if "parameters" in row else "",
    "mean shift / kT": lambda row: _pair(row, "energy_shift_kT", 2),
    "mean shift / kJ/mol": lambda row: _number(row.get("energy_shift_kJ_mol"), 2),
    "median shift / kT": lambda row: _pair(row, "energy_shift_median_kT", 2),
    "low-energy fraction": lambda row: _pair(row, "low_energy_fraction", 4),
    "held-out −log q, own coordinates": lambda row: _pair(row, "nll", 3),
    "−log q, less the first model's": lambda row: _pair(row, "nll_difference", 4),
    "Ramachandran TV": lambda row: _pair(row, "ramachandran_tv", 4),
    "KL": lambda row: _number(row.get("ramachandran_kl"), 4),
    "weighted TV": lambda row: _number(row.get("ramachandran_tv_reweighted"), 4),
    "ΔF raw / kT": lambda row: _pair(row, "delta_f_raw_kT", 2),
    "ΔF weighted / kT": lambda row: _pair(row, "delta_f_kT", 2),
    "ESS raw / %": lambda row: _percent(row, "raw"),
    "ESS clipped / %": lambda row: _percent(row, "clipped"),
    "forward ESS / %": lambda row: _forward(row.get("ess_forward")),
    "D-form / %": lambda row: "" if row.get("mirror_share") is None else f"{100 * row['mirror_share']:.3g}",
    "layer residual": lambda row: f"{row['inverse_residual']:.1e}" if row.get("inverse_residual") else "",
    "step / ms": lambda row: f"{1e3 * row['step_seconds']:.1f}" if "step_seconds" in row else "",
    "hours": lambda row: _number(row.get("train_hours"), 2),
    "energies": lambda row: f"{row['energy_evaluations']:,}" if "energy_evaluations" in row else "",
}


def cells(rows: Sequence[Row]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Header and rows, without columns that are empty everywhere."""
    filled = {title: [cell(row) for row in rows] for title, cell in COLUMNS.items()}
    filled = {title: column for title, column in filled.items() if any(column)}
    return tuple(filled), tuple(zip(*filled.values(), strict=True))


def markdown(rows: Sequence[Row]) -> str:
    """A figure a row, a model a column: many figures, few models."""
    header, lines = cells(rows)
    turned = list(zip(header, *lines, strict=True))
    first, *others = (f"| {' | '.join(line)} |" for line in turned)
    return "\n".join([first, "| --- |" + " ---: |" * len(rows), *others]) + "\n"


def _forward(share: float | None) -> str:
    """One held-out frame of a density close to 0 is enough for a share that says no more than that."""
    if share is None:
        return ""
    return f"{100 * share:.3g}" if share >= LEAST else f"< {100 * LEAST:g}"


def _pair(row: Row, name: str, digits: int) -> str:
    if row.get(name) is None:
        return ""
    error = row.get(f"{name}_error", 0.0)  # null, JSON's infinity, where too few visits leave it unknown
    return f"{row[name]:.{digits}f} ± {math.inf if error is None else error:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(row: Row, kind: str) -> str:
    """At each number of samples."""
    at = row.get("ess_at") or ({str(row["samples"]): {kind: row[f"ess_{kind}"]}} if f"ess_{kind}" in row else {})
    return ", ".join(f"{100 * result[kind]:.3g} at {int(size):,}" for size, result in at.items())
