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
from p4torch.experiments.figures import save
from p4torch.training.folder import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        Curve(panel, side, tuple(sorted(found)), tuple(found[size] for size in sorted(found)))
        for (panel, side), found in sorted(points.items(), key=lambda item: PANELS.index(item[0][0]))
    ]


def exponents(found: Sequence[Curve]) -> list[str]:
    """A sentence for each curve that is long enough."""
    lines = []
    for curve in found:
        fit = curve.fit()
        if fit is not None:
            upper = curve.sizes[len(curve.sizes) // 2 :]
            lines.append(f"{curve.panel}, {curve.side}: n^{fit[0]:.2f} ± {fit[1]:.2f} (n = {upper[0]} to {upper[-1]})")
    return lines


def draw(rows: Sequence[Row], folder: Path) -> Path | None:
    """Write `scaling.pdf`, `.png` and `exponents.json`; None if there is nothing to draw."""
    found = curves(rows)
    if not found:
        return None
    fits = [(curve, curve.fit()) for curve in found]
    write_json(
        folder / "exponents.json",
        [
            {"panel": curve.panel, "side": curve.side, "exponent": fit[0], "standard_error": fit[1]}
            for curve, fit in fits
            if fit is not None
        ],
    )
    return save(_figure(found), folder / "scaling")


#: One look a side, in every panel: ours in colour and solid, peers in grey tones and dashed.
_LOOKS: dict[str, tuple[str, str, str]] = {
    "p4torch Invertible, rank 1": ("#0b5fa5", "-", "o"),
    "p4torch Invertible, rank 4": ("#58a6e0", "-", "s"),
    "p4torch Orthogonal, rank 1": ("#c4541a", "-", "D"),
    "nn.Linear": ("black", ":", "."),
    "LU (nflows)": ("#666666", "--", "^"),
    "dense slogdet, solve": ("#222222", "--", "v"),
    "inverse and slogdet afresh": ("#222222", "--", "v"),
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


def _figure(found: Sequence[Curve]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    handles = {}
    for axis, panel in zip(axes, PANELS, strict=False):
        unit = 1e6 if panel == "memory" else 1e-3
        for curve in (curve for curve in found if curve.panel == panel):
            colour, line, marker = _LOOKS.get(curve.side, ("#aa3377", "--", "x"))
            values = [value / unit for value in curve.values]
            style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 3.5, "linewidth": 1.2}
            (handles[curve.side],) = axis.loglog(curve.sizes, values, **style)
            fit = curve.fit()
            if fit is not None:
                axis.annotate(
                    f"{fit[0]:.1f}", (curve.sizes[-1], values[-1]), xytext=(5, 0), color=colour,
                    textcoords="offset points", fontsize=6, va="center",
                )  # fmt: skip
        sizes = sorted({size for curve in found if curve.panel == panel for size in curve.sizes})
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_title(_TITLES[panel], fontsize=9)
        axis.set_ylabel("MB" if panel == "memory" else "ms", fontsize=8)
        axis.set_xlabel("n", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(which="major", linewidth=0.3, alpha=0.5)
    axes[-1].axis("off")
    note = "Numbers: exponents of n, fitted over the upper half of the sizes.\nNo gradients, but in the memory panel. "
    note += "\n" + "; ".join(f"{side} up to n = {cap}" for side, cap in CAPS.items()) + "."
    axes[-1].legend(handles.values(), handles.keys(), loc="upper left", fontsize=8, frameon=False)
    axes[-1].text(0, 0, note, fontsize=6.5, va="bottom", transform=axes[-1].transAxes)
    return figure
