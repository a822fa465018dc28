"""Energy distributions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.energies import weighted_quantile
from p4torch.molecules.analysis.histograms import energy_histogram
from p4torch.molecules.analysis.inputs import normalize_weights
from p4torch.molecules.analysis.plots import COLOURS, PAGE, blank, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Bins of a violin's outline.
BINS = 80


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
    if not groups:
        raise ArgumentError.of("groups", "a mapping with at least one entry", "an empty one")
    floor = min(float(energies[energies.isfinite()].min()) for energies, _ in groups.values())
    edges = torch.linspace(floor, threshold + 0.15 * (threshold - floor), BINS + 1, dtype=torch.float64)
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
