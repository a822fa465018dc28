"""The figure: held-out log-likelihood over steps and over seconds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from experiments import figures
from experiments.patches.models import TITLES, block_title
from experiments.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BASELINES = {"dense": "black", "lu": "tab:blue", "relative": "tab:red", "fixed": "silver"}
_BLOCKS = ("tab:pink", "tab:orange", "tab:cyan")
_TRIANGULAR = "tab:brown"
_LINES = ("-", "--", ":", "-.")


def draw(rows: list[Row], gaussian: float) -> Figure:
    """One row of panels for each kind of directions, the baselines in all. Colours are ranks, line styles merge
    intervals."""
    kinds = list(dict.fromkeys(row["directions"] for row in rows if row["directions"])) or [""]
    figure, panels = figures.panels(len(kinds), 2, width=4.2, height=2.9, sharey=True, sharex="col")
    styles, (bottom, top) = _styles(rows), _limits(rows, gaussian)
    for line, kind in zip(panels, kinds, strict=True):
        shown = [
            (row, style)
            for row, style in zip(rows, styles, strict=True)
            if row["directions"] in ("", kind) and any(point[2] > bottom for point in row["curve"])
        ]
        for column, axis in enumerate(line):
            for row, style in shown:
                axis.plot([point[column] for point in row["curve"]], [point[2] for point in row["curve"]], **style)
            axis.axhline(gaussian, color="tab:brown", lw=1.0, ls=(0, (1, 3)), label="one Gaussian")
            _plain(axis)
        line[0].set_ylabel("held-out log-likelihood\n/ nats a patch", fontsize=8)
        line[1].legend(
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            fontsize=6.5,
            frameon=False,
            title=_title(kind),
            title_fontsize=7,
        )
    panels[-1][0].set_xlabel("steps", fontsize=8)
    panels[-1][1].set_xlabel("seconds of training, one thread", fontsize=8)
    panels[0][0].set_ylim(bottom, top)
    return figure


def _styles(rows: list[Row]) -> list[dict[str, Any]]:
    """A line for each row of the result."""
    from matplotlib import colormaps

    ranks, intervals, blocks = (sorted({row[name] for row in rows if row[name]}) for name in ("rank", "every", "block"))
    styles: list[dict[str, Any]] = []
    for row in rows:
        if row["model"] in _BASELINES:
            styles.append({"color": _BASELINES[row["model"]], "lw": 1.6, "label": TITLES[row["model"]]})
            continue
        line = _LINES[intervals.index(row["every"]) % len(_LINES)]
        if not row["rank"]:
            what = block_title(row["block"]) if row["block"] else "triangular"
            colour = _BLOCKS[blocks.index(row["block"]) % len(_BLOCKS)] if row["block"] else _TRIANGULAR
            styles.append({"color": colour, "ls": line, "lw": 1.6, "label": f"P4Inv, {what}, N = {row['every']}"})
            continue
        place = ranks.index(row["rank"]) / max(1, len(ranks) - 1)
        label = f"P4Inv, rank {row['rank']}, N = {row['every']}"
        styles.append({"color": colormaps["viridis"](0.9 - 0.8 * place), "ls": line, "lw": 1.0, "label": label})
    return styles


def _limits(rows: list[Row], gaussian: float) -> tuple[float, float]:
    """From the Gaussian, or the worst end of a curve, to the best. What never comes so far stands in the table alone:
    it would flatten the rest."""
    values = [point[2] for row in rows for point in row["curve"] if math.isfinite(point[2])]
    ends = [row["curve"][-1][2] for row in rows if row["model"] != "fixed"]
    top = max([*values, gaussian])
    bottom = max(min([*ends, gaussian]), gaussian - max(top - gaussian, 10.0))
    margin = 0.05 * max(top - bottom, 1.0)
    return bottom - margin, top + margin


def _title(kind: str) -> str | None:
    return f"{kind} directions" if kind else None


def _plain(axis: Axes) -> None:
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25, lw=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
