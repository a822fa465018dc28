"""From the rows of jobs to the rows of the result, and to a table for people."""

from __future__ import annotations

import math
import statistics

from experiments.patches.config import Config
from experiments.patches.data import bits_per_dimension
from experiments.patches.models import TITLES, Variant
from experiments.tables import Columns, Row, aligned, number, skipped, spread


def summarise(config: Config, rows: list[Row], clock: dict[str, float]) -> list[Row]:
    """One row for each variant: means over the seeds, with errors of two kinds.

    "held_out_std" is the standard deviation over seeds, "tile_error" the standard error over held-out tiles, which all
    models share: so "over_dense" is the mean difference to the dense layers tile by tile, with the error of that.
    """
    by_variant = {variant: [row for row in rows if variant_of(row) == variant] for variant in config.variants()}
    tiles = {variant: _mean_tiles(group) for variant, group in by_variant.items()}
    reference = tiles.get(Variant("dense"), [])
    return [
        {**_summary(group, clock[variant.name]), "tile_error": _error(tiles[variant])}
        | _difference(tiles[variant], reference)
        for variant, group in by_variant.items()
    ]


def variant_of(row: Row) -> Variant:
    """What was trained."""
    return Variant(row["model"], row["rank"], row["every"], row["directions"], row["block"])


def _summary(rows: list[Row], milliseconds: float) -> Row:
    first, held_out = rows[0], [number(row["held_out"], -math.inf) for row in rows]
    shared = (
        "model",
        "rank",
        "block",
        "every",
        "directions",
        "learning_rate",
        "steps",
        "batch",
        "layers",
        "parameters",
    )
    length = min(len(row["curve"]) for row in rows)
    curve = [
        [step, step * milliseconds / 1000, statistics.fmean(number(row["curve"][index][2], -math.inf) for row in rows)]
        for index, (step, *_) in enumerate(first["curve"][:length])
    ]
    mean = statistics.fmean(held_out)
    return {
        **{name: first[name] for name in shared},
        "held_out_mean": mean,
        "held_out_std": spread(held_out),
        "bits_per_dimension": bits_per_dimension(mean),
        "seeds": [row["seed"] for row in rows],
        "best_steps": [row["best_step"] for row in rows],
        "step_milliseconds": milliseconds,
        "step_milliseconds_in_training": statistics.median(row["step_milliseconds"] for row in rows),
        "wall_seconds": statistics.fmean(row["curve"][-1][1] for row in rows),
        "logabsdet_error": max(number(row["logabsdet_error"]) for row in rows),
        "merged": sum(row["merged"] for row in rows),
        "skipped": sum(row["skipped"] for row in rows),
        "diverged": sum(row["diverged"] for row in rows),
        "curve": curve,
    }


def _mean_tiles(rows: list[Row]) -> list[float]:
    """The mean over seeds for each held-out tile; empty if a training has none."""
    if not all(row["tiles"] for row in rows):
        return []
    return [statistics.fmean(values) for values in zip(*(row["tiles"] for row in rows), strict=True)]


def _error(values: list[float]) -> float:
    """The standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def _difference(tiles: list[float], reference: list[float]) -> Row:
    if not tiles or not reference:
        return {"over_dense": None, "over_dense_error": None}
    gains = [mine - theirs for mine, theirs in zip(tiles, reference, strict=True)]
    return {"over_dense": statistics.fmean(gains), "over_dense_error": _error(gains)}


def _over_dense(row: Row) -> str:
    if row["over_dense"] is None or row["model"] == "dense":
        return ""
    return f"{row['over_dense']:+.2f} ± {row['over_dense_error']:.2f}"


_COLUMNS: Columns = (
    ("model", lambda row: TITLES[row["model"]]),
    ("rank", lambda row: str(row["rank"] or "")),
    ("block", lambda row: str(row["block"] or "")),
    ("N", lambda row: str(row["every"] or "")),
    ("directions", lambda row: row["directions"]),
    ("parameters", lambda row: str(row["parameters"])),
    ("rate", lambda row: f"{row['learning_rate']:g}"),
    ("held out / nats", lambda row: f"{row['held_out_mean']:.2f} ± {row['held_out_std']:.2f}"),
    ("over dense / nats", _over_dense),
    ("bits/dim", lambda row: f"{row['bits_per_dimension']:.3f}"),
    ("ms/step", lambda row: f"{row['step_milliseconds']:.2f}"),
    ("skipped", lambda row: skipped(row) if row["every"] else ""),
)


def markdown(rows: list[Row], gaussian: float) -> str:
    """With the Gaussian in the last row."""
    last = {
        "model": "Gaussian",
        "held out / nats": f"{gaussian:.2f}",
        "bits/dim": f"{bits_per_dimension(gaussian):.3f}",
    }
    return aligned(_COLUMNS, rows, last)
