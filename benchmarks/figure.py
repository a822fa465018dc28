"""Cost against n: one panel for each thing that a layer does, log-log, with the exponent of each curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.families.scaling import CAPS, PANELS, VECTORS
from benchmarks.layers import BATCH
from benchmarks.rows import Row
from p4torch.runs.folder import write_figure, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


@dataclass(frozen=True)
class Curve:
    """Cost of one side, sorted by n."""

    panel: str
    side: str
    sizes: tuple[int, ...]
    values: tuple[float, ...]

    def fit(self) -> tuple[float, float] | None:
        """(exponent, its standard error) over the upper half of the sizes; None for fewer than three of them."""
        upper = slice(len(self.sizes) // 2, None)
        return fitted(self.sizes[upper], self.values[upper])


def fitted(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float] | None:
    """Least squares for p in value = c nᵖ, on logarithms: (p, standard error)."""
    count = len(sizes)
    if count < 3:
        return None
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / count, sum(y) / count
    variance = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / variance
    errors = [b - mean_y - slope * (a - mean_x) for a, b in zip(x, y, strict=True)]
    return slope, math.sqrt(sum(error**2 for error in errors) / (count - 2) / variance)


def curves(rows: Sequence[Row]) -> list[Curve]:
    """The curves of all panels, in their order."""
    points: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if "value" in row.facts:
            points.setdefault((row.facts["panel"], row.sides), {})[row.facts["features"]] = row.facts["value"]
    return [
        Curve(panel, side, tuple(sorted(group)), tuple(group[size] for size in sorted(group)))
        for (panel, side), group in sorted(points.items(), key=lambda item: PANELS.index(item[0][0]))
    ]


def exponents(lines: Sequence[Curve]) -> list[tuple[str, ...]]:
    """(panel, side, sizes, exponent) of each curve that is long enough."""
    return [
        (curve.panel, curve.side, f"{upper[0]} to {upper[-1]}", f"{fit[0]:.2f} ± {fit[1]:.2f}")
        for curve in lines
        if (fit := curve.fit()) is not None and (upper := curve.sizes[len(curve.sizes) // 2 :])
    ]


def draw(rows: Sequence[Row], folder: Path) -> Path | None:
    """Write `scaling.pdf`, `.png` and `exponents.json`; None if there is nothing to draw."""
    lines = curves(rows)
    if not lines:
        return None
    fits = [(curve, curve.fit()) for curve in lines]
    write_json(
        folder / "exponents.json",
        [
            {"panel": curve.panel, "side": curve.side, "exponent": fit[0], "standard_error": fit[1]}
            for curve, fit in fits
            if fit is not None
        ],
    )
    threads = sorted({row.facts["threads"] for row in rows if "threads" in row.facts})
    return write_figure(folder / "scaling", _figure(lines, ", ".join(map(str, threads))))


#: One look a side, in every panel: ours in colour and solid, peers in grey tones and dashed.
_LOOKS: dict[str, tuple[str, str, str]] = {
    "p4torch Invertible, rank 1": ("#0b5fa5", "-", "o"),
    "p4torch Invertible, rank 4": ("#58a6e0", "-", "s"),
    "p4torch Orthogonal, rank 1": ("#c4541a", "-", "D"),
    "nn.Linear": ("black", ":", "."),
    "LU (nflows)": ("#777777", "--", "^"),
    "dense slogdet, solve": ("#222222", "--", "v"),
    "inverse and slogdet afresh": ("#222222", "--", "P"),
    "torch Cayley": ("#999999", "-.", "<"),
    "torch matrix_exp": ("#b8860b", "-.", ">"),
}
_TITLES = {
    "forward": f"forward, {VECTORS} vectors",
    "inverse": f"inverse with log|det|, {VECTORS} vectors",
    "logabsdet": "log|det|",
    "merge": "merge",
    "memory": f"memory of a training step, batch {BATCH}",
}

#: What the arrows in the panels compare: the dense way with ours.
_CLAIM = ("p4torch Invertible, rank 1", "dense slogdet, solve")


def _figure(lines: Sequence[Curve], threads: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    handles: dict[str, Line2D] = {}
    for axis, panel in zip(axes, PANELS, strict=False):
        handles |= _panel(axis, panel, [curve for curve in lines if curve.panel == panel])
    note = "Numbers: exponents of n, fitted over the upper half of the sizes.\nArrows: dense / p4torch rank 1.\n"
    note += f"float32, threads: {threads}. No gradients, but in the memory panel.\n"
    note += "; ".join(f"{side} up to n = {cap}" for side, cap in CAPS.items()) + "."
    axes[-1].axis("off")
    axes[-1].legend(handles.values(), handles.keys(), loc="upper left", fontsize=8, frameon=False)
    axes[-1].text(0, 0, note, fontsize=6.5, va="bottom", transform=axes[-1].transAxes)
    return figure


def _panel(axis: Axes, panel: str, lines: Sequence[Curve]) -> dict[str, Line2D]:
    unit = 1e6 if panel == "memory" else 1e-3
    handles, labels = {}, []
    for curve in lines:
        colour, line, marker = _LOOKS.get(curve.side, ("#aa3377", "--", "x"))
        values = [value / unit for value in curve.values]
        (handles[curve.side],) = axis.loglog(
            curve.sizes, values, color=colour, linestyle=line, marker=marker, markersize=3.5, linewidth=1.2
        )
        fit = curve.fit()
        if fit is not None:
            labels.append((curve.sizes[-1], values[-1], f"{fit[0]:.1f}", colour))
    sizes = sorted({size for curve in lines for size in curve.sizes})
    if sizes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xlim(sizes[0] / 1.3, sizes[-1] * 2)
        axis.minorticks_off()
    _write_exponents(axis, labels)
    _write_claim(axis, {curve.side: curve for curve in lines}, unit)
    axis.set_title(_TITLES[panel], fontsize=9)
    axis.set_ylabel("MB" if panel == "memory" else "ms", fontsize=8)
    axis.set_xlabel("n", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(which="major", linewidth=0.3, alpha=0.5)
    return handles


def _write_exponents(axis: Axes, labels: list[tuple[int, float, str, str]]) -> None:
    """At the ends of the curves, each moved up as far as the one below it asks for."""
    if not labels:
        return
    low, high = (math.log(limit) for limit in axis.get_ylim())
    gap = (high - low) / 22
    last: dict[int, float] = {}
    for size, value, text, colour in sorted(labels, key=lambda label: label[1]):
        height = max(math.log(value), last.get(size, -math.inf) + gap)
        last[size] = height
        axis.annotate(
            text, (size, math.exp(height)), xytext=(5, 0), textcoords="offset points", color=colour, fontsize=6,
            va="center",
        )  # fmt: skip


def _write_claim(axis: Axes, by_side: dict[str, Curve], unit: float) -> None:
    """How many times cheaper than the dense way, at the largest n."""
    if not all(side in by_side for side in _CLAIM) or "nn.Linear" in by_side:
        return
    ours, dense = (by_side[side] for side in _CLAIM)
    if ours.sizes[-1] != dense.sizes[-1]:
        return
    size, low, high = ours.sizes[-1], ours.values[-1] / unit, dense.values[-1] / unit
    arrow = {"arrowstyle": "<->", "linewidth": 0.7, "color": "#555555", "shrinkA": 3, "shrinkB": 3}
    axis.annotate("", (size, low), xytext=(size, high), arrowprops=arrow)
    axis.annotate(
        f"{high / low:.0f} ×", (size, low**0.7 * high**0.3), xytext=(-4, 0), textcoords="offset points", fontsize=7,
        ha="right", va="center",
    )  # fmt: skip
