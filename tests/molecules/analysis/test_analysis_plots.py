"""Figures are drawn, say what they should, and need no display."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from p4torch.errors import ArgumentError, P4Error
from p4torch.molecules.analysis import (
    compare_energies,
    effective_sample_size_figure,
    effective_sample_size_growth,
    energy_figure,
    energy_histogram,
    free_energy_figure,
    free_energy_profile,
    ramachandran_figure,
    ramachandran_histogram,
)
from p4torch.molecules.analysis.free_energy import FreeEnergyProfile

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _ramachandran(panels: int = 3) -> Figure:
    histograms = {}
    for number in range(panels):
        near = torch.rand(50_000) < 0.2
        phi = torch.where(near, 1.0, -1.5) + 0.35 * torch.randn(50_000)
        psi = torch.where(near, 0.5, 2.5) + (0.4 + 0.1 * number) * torch.randn(50_000)
        histograms[("reference", "flow", "flow, reweighted")[number]] = ramachandran_histogram(phi, psi)
    return ramachandran_figure(histograms)


def _energies() -> Figure:
    data, samples = 12 * torch.randn(20_000) - 60, 15 * torch.randn(20_000) - 40
    edges = torch.linspace(-120, 40, 81)
    comparisons = {"flow": compare_energies(samples, data)}
    return energy_figure({"data": energy_histogram(data, edges), "flow": energy_histogram(samples, edges)}, comparisons)


def _profiles() -> Figure:
    profiles = {}
    for name, frames in (("reference", 50_000), ("flow", 2_000)):
        near = torch.rand(frames) < 0.1
        profiles[name] = free_energy_profile(torch.where(near, 1.0, -1.5) + 0.4 * torch.randn(frames))
    return free_energy_figure(profiles)


def _growth() -> Figure:
    sizes = torch.logspace(0, 5, 26).long()
    log_weights = {"narrow": torch.randn(100_000), "broad": 3 * torch.randn(100_000)}
    growths = {name: effective_sample_size_growth(value, sizes) for name, value in log_weights.items()}
    return effective_sample_size_figure(sizes, growths)


FIGURES = {
    "ramachandran": (_ramachandran, "φ / rad"),
    "one-panel": (lambda: _ramachandran(1), "ψ / rad"),
    "energies": (_energies, "potential energy / (kJ/mol)"),
    "profiles": (_profiles, "free energy / kT"),
    "growth": (_growth, "effective sample size"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_drawn(name: str, tmp_path: Path) -> None:
    make, label = FIGURES[name]
    figure = make()
    labels = {text for axis in figure.axes for text in (axis.get_xlabel(), axis.get_ylabel())}
    assert label in labels
    assert figure.get_figwidth() <= 7.0
    for ending in ("png", "pdf"):
        path = tmp_path / f"{name}.{ending}"
        figure.savefig(path, dpi=150)
        assert path.stat().st_size > 5_000


def test_free_energies_of_bins_that_are_hardly_sampled_are_gaps_and_the_axis_ends() -> None:
    edges = torch.linspace(-3, 3, 7, dtype=torch.float64)
    free_energy = torch.tensor([0.0, 1.0, 5.0, 9.0, math.inf, 80.0], dtype=torch.float64)
    error = torch.tensor([0.1, 0.2, 1.5, math.inf, math.nan, 0.3], dtype=torch.float64)
    (axis,) = free_energy_figure({"model": FreeEnergyProfile(edges, free_energy, error)}).axes
    shown = torch.from_numpy(axis.lines[0].get_ydata())
    assert shown.isfinite().tolist() == [True, True, False, False, False, True]
    assert axis.get_ylim() == (0.0, 15.0)
    (axis,) = free_energy_figure({"model": FreeEnergyProfile(edges[:3], free_energy[:2], error[:2])}).axes
    assert 1.4 < axis.get_ylim()[1] < 2


@pytest.mark.parametrize("make", [_ramachandran, _profiles])
def test_torsions_are_in_radians_and_degrees(make: Callable[[], Figure]) -> None:
    ticks = [text.get_text() for text in make().axes[0].get_xticklabels()]
    assert ticks == ["−π\n−180°", "0\n0°", "π\n180°"]


def test_legend_says_the_low_energy_fraction() -> None:
    (axis,) = _energies().axes
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert texts[0] == "data"
    assert texts[1].startswith("flow: ")
    assert texts[1].endswith("% low")


def test_a_missing_matplotlib_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(P4Error, match=r'matplotlib.*pip install "p4torch\[experiments\]"'):
        _growth()


def _line() -> torch.Tensor:
    return torch.linspace(0, 1, 3)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: ramachandran_figure({}), "panels"),
        (lambda: ramachandran_figure({"a": energy_histogram(_line(), _line())}), "panels"),
        (lambda: energy_figure({}), "histograms"),
        (lambda: energy_figure({"a": ramachandran_histogram(_line(), _line())}), "histograms"),
        (lambda: free_energy_figure({}), "profiles"),
        (lambda: effective_sample_size_figure(torch.ones(2), {"a": torch.ones(3)}), "growths"),
    ],
)
def test_bad_input_names_the_argument(make: Callable[[], Figure], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        make()
