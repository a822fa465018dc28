"""From the rows of jobs to the rows of the result, and to a table for people."""

from __future__ import annotations

import statistics

from experiments.density.config import Config
from experiments.tables import Columns, Row, aligned, number, skipped, spread


def summarise(config: Config, rows: list[Row]) -> list[Row]:
    """One row for each target and model: mean and standard deviation over the seeds."""
    return [
        _summary([row for row in rows if (row["target"], row["model"]) == (target, model)])
        for target in config.targets
        for model in config.models
    ]


def _summary(rows: list[Row]) -> Row:
    rows = sorted(rows, key=lambda row: row["seed"])
    first = rows[0]
    kl, leakage = [number(row["kl"]) for row in rows], [row["leakage"] for row in rows]
    return {
        "target": first["target"],
        "model": first["model"],
        "parameters": first["parameters"],
        "kl_mean": statistics.fmean(kl),
        "kl_std": spread(kl),
        "leakage_mean": statistics.fmean(leakage),
        "leakage_std": spread(leakage),
        "data_leakage": first["data_leakage"],
        "seeds": [row["seed"] for row in rows],
        "learning_rate": first["learning_rate"],
        "steps": first["steps"],
        "batch": first["batch"],
        "every": first["every"],
        "steps_per_second": statistics.fmean(row["steps_per_second"] for row in rows),
        "inverse_residual": max(number(row["inverse_residual"]) for row in rows),
        "logabsdet_error": max(number(row["logabsdet_error"]) for row in rows),
        "round_trip": max(number(row["round_trip"]) for row in rows),
        "merged": sum(row["merged"] for row in rows),
        "skipped": sum(row["skipped"] for row in rows),
    }


_COLUMNS: Columns = (
    ("target", lambda row: row["target"]),
    ("model", lambda row: row["model"]),
    ("parameters", lambda row: str(row["parameters"])),
    ("KL / nats", lambda row: f"{row['kl_mean']:.4f} ± {row['kl_std']:.4f}"),
    ("leakage / %", lambda row: f"{100 * row['leakage_mean']:.2f} ± {100 * row['leakage_std']:.2f}"),
    ("data / %", lambda row: f"{100 * row['data_leakage']:.2f}"),
    ("steps/s", lambda row: f"{row['steps_per_second']:.0f}"),
    ("max abs(W W⁻¹ − I)", lambda row: f"{row['inverse_residual']:.1e}"),
    ("round trip", lambda row: f"{row['round_trip']:.1e}"),
    ("skipped", skipped),
    ("rate", lambda row: f"{row['learning_rate']:g}"),
)


def markdown(rows: list[Row]) -> str:
    """A row a line."""
    return aligned(_COLUMNS, rows)
