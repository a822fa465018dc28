"""Figures fit for a paper: one or two columns wide, 7 to 8 pt, colours that the colour-blind can tell apart.

Each function returns a figure; the caller saves it, as PDF or PNG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.energies import EnergyComparison, weighted_quantile
from p4torch.molecules.analysis.free_energy import FreeEnergyProfile
from p4torch.molecules.analysis.histograms import Histogram, energy_histogram
from p4torch.molecules.analysis.inputs import normalize_weights
from p4torch.molecules.analysis.optional import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 7.0
"""Widths of one column and of two, in inches."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart by all kinds of colour vision; line styles change along with them."""
STYLES = ("-", "--", "-.", ":")
VIOLIN_BINS = 80
"""Bins of a violin's outline."""
ANGLES, DEGREES = (-math.pi, 0.0, math.pi), ("−π\n−180°", "0\n0°", "π\n180°")
"""Ticks of torsions, in rad, and what stands there."""
ERROR, CEILING = 1.0, 15.0
"""Free energies, kT: a bin whose standard error is above the first is hardly sampled; the axis ends at the second."""


def ramachandran_figure(panels: Mapping[str, Histogram], ceiling: float = 10.0) -> Figure:
    """Free energies −ln(p / p_max) in kT over (φ, ψ), side by side on one scale; white above `ceiling` and unvisited.

    p_max is each panel's own, so that the colours compare shapes. `panels` go by their titles.
    """
    _some(panels, "panels")
    width = min(COLUMN * 0.62 * len(panels) + 0.6, PAGE) if len(panels) > 1 else COLUMN
    figure = blank(width, (width - 0.9) / len(panels) + 0.6)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (title, histogram) in zip(axes, panels.items(), strict=True):
        _dimensions(histogram, 2, "panels")
        probabilities = histogram.probabilities.cpu()
        free_energy = -(probabilities / probabilities.max()).log()
        shown = free_energy.where(free_energy <= ceiling, torch.nan).T.numpy()
        edges = histogram.edges.cpu().numpy()
        image = axis.pcolormesh(edges, edges, shown, cmap="viridis", vmin=0, vmax=ceiling, rasterized=True)
        axis.set(aspect="equal", xlabel="φ / rad")
        axis.set_title(title, fontsize=8)
        axis.set_xticks(ANGLES, DEGREES)
        axis.set_yticks(ANGLES, DEGREES)
        plain(axis)
    axes[0].set_ylabel("ψ / rad")
    bar = figure.colorbar(image, ax=axes, aspect=20, pad=0.02)
    bar.set_label("free energy / kT", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def energy_figure(
    histograms: Mapping[str, Histogram], comparisons: Mapping[str, EnergyComparison] | None = None, unit: str = "kJ/mol"
) -> Figure:
    """Energy distributions over one another, by name.

    Where there is a comparison of the same name, the legend says its low-energy fraction; a dotted line marks the
    threshold of the first one.
    """
    figure, axis = _single(histograms, "histograms")
    comparisons = comparisons or {}
    for number, (name, histogram) in enumerate(histograms.items()):
        _dimensions(histogram, 1, "histograms")
        label = name
        if name in comparisons:
            low = comparisons[name].low_energy_fraction
            label = f"{name}: {100 * low.value:.1f} ± {100 * low.error:.1f} % low"
        colour, style = _look(number)
        axis.stairs(histogram.density.cpu().numpy(), histogram.edges.cpu().numpy(), color=colour, ls=style, label=label)
    for comparison in list(comparisons.values())[:1]:
        axis.axvline(comparison.threshold, color="0.4", lw=0.8, ls=":")
    shown = f"({unit})" if "/" in unit else unit
    axis.set(xlabel=f"potential energy / {shown}", ylabel=f"density / {shown}⁻¹")
    axis.set_ylim(bottom=0)
    plain(axis, legend=True)
    return figure


def free_energy_figure(profiles: Mapping[str, FreeEnergyProfile], torsion: str = "φ", errors: float = 2.0) -> Figure:
    """Free-energy profiles along a torsion, by name, with bands of ± so many standard errors.

    Bins that are hardly sampled (an error above `ERROR`, or none) are gaps. The axis ends at `CEILING` or below.
    """
    figure, axis = _single(profiles, "profiles")
    highest = 0.0
    for number, (name, profile) in enumerate(profiles.items()):
        colour, style = _look(number)
        sampled = profile.free_energy.isfinite() & (profile.error <= ERROR)
        centres, error = profile.centres.cpu().numpy(), profile.error.cpu().where(sampled.cpu(), torch.nan)
        value = profile.free_energy.cpu().where(sampled.cpu(), torch.nan)
        band = errors * error
        axis.plot(centres, value.numpy(), color=colour, ls=style, lw=1.2, label=name)
        axis.fill_between(centres, (value - band).numpy(), (value + band).numpy(), color=colour, alpha=0.25, lw=0)
        highest = max(highest, float((value + band).nan_to_num(0.0).max()))
    axis.set(xlabel=f"{torsion} / rad and degrees", ylabel="free energy / kT", xlim=(ANGLES[0], ANGLES[-1]))
    axis.set_xticks(ANGLES, DEGREES)
    axis.set_ylim(0, min(CEILING, 1.05 * highest) or 1.0)
    plain(axis, legend=True)
    return figure


def energy_violin_figure(
    groups: Mapping[str, tuple[Tensor, Tensor | None]], threshold: float, unit: str = "kT", origin: float = 0.0
) -> Figure:
    """A violin for each group of energies `(n,)` with weights, by name; below it the share up to the threshold.

    The outline is a histogram up to a little above the threshold, scaled to the same width for all; a dot marks the
    median of all energies, infinite ones included, a bar the middle half.

    Args:
        groups: names to (energies, weights or None), in the unit.
        threshold: the dashed line: an energy up to it is low.
        origin: what is taken off all energies that are shown.

    Raises:
        ArgumentError: no groups; energies that are NaN; a group without energies near the threshold or below.

    Source: the left half of figure 4 of Krämer, Köhler and Noé (2020).
    """
    _some(groups, "groups")
    floor = min(float(energies[energies.isfinite()].min()) for energies, _ in groups.values())
    edges = torch.linspace(floor, threshold + 0.15 * (threshold - floor), VIOLIN_BINS + 1, dtype=torch.float64)
    figure = blank(min(PAGE, 0.85 * len(groups) + 0.9), 2.6)
    axis = figure.subplots()
    for place, (energies, weights) in enumerate(groups.values()):
        share = normalize_weights(weights, energies)
        outline = energy_histogram(energies.clamp(max=2 * float(edges[-1]) - floor), edges, share)
        width = 0.42 * outline.probabilities / outline.probabilities.max()
        height = (outline.centres - origin).numpy()
        colour = COLOURS[place % len(COLOURS)]
        axis.fill_betweenx(height, (place - width).numpy(), (place + width).numpy(), color=colour, alpha=0.6, lw=0)
        low, median, high = (weighted_quantile(energies, torch.tensor([0.25, 0.5, 0.75]), share) - origin).tolist()
        axis.vlines(place, low, high, color="black", lw=1.5)
        axis.plot(place, median, "o", color="white", mec="black", ms=3.5, mew=0.7)
        fraction = float(share[energies <= threshold].sum())
        axis.annotate(
            f"{fraction:.3f}", (place, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7
        )
    axis.axhline(threshold - origin, color="0.4", lw=0.8, ls=":")
    axis.annotate("low-energy fraction:", (0, 1.09), xycoords="axes fraction", fontsize=7)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set(ylabel=f"(energy − mean of MD) / {unit}" if origin else f"energy / {unit}", xlim=(-0.6, len(groups) - 0.4))
    axis.set_ylim(floor - origin, float(edges[-1]) - origin)
    plain(axis)
    return figure


def effective_sample_size_figure(sizes: Tensor, growths: Mapping[str, Tensor]) -> Figure:
    """Effective sample sizes `(k,)`, by name, against numbers of samples `(k,)`; the dashed line is their equality."""
    figure, axis = _single(growths, "growths")
    places = sizes.cpu().numpy()
    axis.plot(places, places, color="0.6", ls="--", lw=0.8, label="independent samples")
    for number, (name, growth) in enumerate(growths.items()):
        if growth.shape != sizes.shape:
            raise ArgumentError.of("growths", f"of shape {tuple(sizes.shape)}, as `sizes`", tuple(growth.shape))
        colour, _ = _look(number)
        axis.plot(places, growth.cpu().numpy(), color=colour, lw=1.2, marker="o", ms=2.5, label=name)
    axis.set(xscale="log", yscale="log", xlabel="samples", ylabel="effective sample size")
    plain(axis, legend=True)
    return figure


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches; needs no display.

    Raises:
        P4Error: matplotlib is not installed.
    """
    canvas = optional("matplotlib.backends.backend_agg", "experiments").FigureCanvasAgg
    figure: Figure = optional("matplotlib.figure", "experiments").Figure(figsize=(width, height), layout="constrained")
    canvas(figure)
    return figure


def plain(axis: Axes, legend: bool = False) -> None:
    """Thin lines, small labels."""
    axis.tick_params(labelsize=7, width=0.5, which="both")
    axis.xaxis.label.set_fontsize(8)
    axis.yaxis.label.set_fontsize(8)
    for spine in axis.spines.values():
        spine.set_linewidth(0.5)
    if legend:
        axis.legend(fontsize=7, frameon=False)


def _single(items: Mapping[str, object], name: str) -> tuple[Figure, Axes]:
    """A figure of one column with one plot, for what is not empty."""
    _some(items, name)
    figure = blank(COLUMN, 2.3)
    return figure, figure.subplots()


def _look(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]


def _some(items: Mapping[str, object], name: str) -> None:
    if not items:
        raise ArgumentError.of(name, "a mapping with at least one entry", "an empty one")


def _dimensions(histogram: Histogram, dimensions: int, name: str) -> None:
    shape = tuple(histogram.probabilities.shape)
    if len(shape) != dimensions:
        raise ArgumentError.of(name, f"histograms of {dimensions} dimension{'s' * (dimensions > 1)}", shape)
