"""Figures for papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Extent = tuple[float, float, float, float]


@dataclass(frozen=True)
class DensityRow:
    """One row: a name, the part of the plane that is shown, and log-densities `(n, n)` on its grid, truth first."""

    name: str
    extent: Extent
    log_densities: Sequence[Tensor]


def grid(extent: Extent, points: int) -> Tensor:
    """`(points², 2)`, row by row from the bottom: the centres of the pixels of an image."""
    left, right, bottom, top = extent
    place = (torch.arange(points) + 0.5) / points
    y, x = torch.meshgrid(bottom + (top - bottom) * place, left + (right - left) * place, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def density_figure(columns: Sequence[str], rows: Sequence[DensityRow], floor: float = 1e-3) -> Figure:
    """Densities side by side, on a logarithmic scale from `floor` to 1 of the row's true maximum.

    A bridge between two modes is thin: on a linear scale it vanishes, here it is what catches the eye.
    """
    from matplotlib.colors import LogNorm

    figure, axes = panels(len(rows), len(columns), width=1.55, height=1.5)
    figure.set_size_inches(1.55 * len(columns) + 0.75, 1.5 * len(rows) + 0.3)
    norm = LogNorm(floor, 1.0)
    for line, row in zip(axes, rows, strict=True):
        top = row.log_densities[0].max()
        for axis, log_density in zip(line, row.log_densities, strict=True):
            relative = (log_density - top).exp().nan_to_num(nan=0.0).clamp(floor, 1.0)
            image = axis.imshow(
                relative.numpy(), norm=norm, cmap="magma", origin="lower", extent=row.extent, interpolation="none"
            )
            _bare(axis)
        line[0].set_ylabel(row.name, fontsize=8)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    bar = figure.colorbar(image, ax=figure.axes, shrink=min(1.0, 2 / len(rows)), aspect=20, pad=0.02)
    bar.set_label("density / largest true density", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure, and its panels row by row; width and height are of one panel, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [list(line) for line in figure.subplots(rows, columns, squeeze=False, **options)]


def _bare(axis: Axes) -> None:
    """No ticks: the shapes are the message."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_linewidth(0.5)
