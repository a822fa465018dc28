"""Figures of generators beside their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from p4torch.molecules.analysis.free_energy import free_energy_profile
from p4torch.molecules.analysis.plots import (
    COLOURS,
    PAGE,
    blank,
    effective_sample_size_figure,
    energy_violin_figure,
    free_energy_figure,
    plain,
    ramachandran_figure,
)
from p4torch.molecules.analysis.torsions import torsion_angles
from p4torch.molecules.analysis.weights import effective_sample_size_growth
from p4torch.molecules.generator.evaluation import noisy_frames, reduced_energies
from p4torch.molecules.generator.reference import Reference
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.torsion_names import torsion_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Line = dict[str, Any]


def energies(reference: Reference, models: Mapping[str, Samples]) -> Figure:
    """MD, MD with noise, and each model."""
    noisy = noisy_frames(reference)
    groups: dict[str, tuple[Tensor, Tensor | None]] = {
        "MD": (reference.all.energies / reference.system.kT, reference.all.weights),
        "MD +\n0.004 nm": (reduced_energies(reference.system, noisy), None),
        **{title.replace(", ", ",\n"): (samples.energies, None) for title, samples in models.items()},
    }
    mean, largest = reference.level
    return energy_violin_figure(groups, largest, origin=mean)


def ramachandran(reference: Reference, title: str, samples: Samples) -> Figure:
    """MD, and one model without weights and with them."""
    panels = {"MD": reference.ramachandran, title: reference.histogram(samples.frames)}
    if samples.weighted:
        panels[f"{title}, weighted"] = reference.histogram(samples.frames, samples.weights)
    return ramachandran_figure(panels)


def free_energies(reference: Reference, title: str, samples: Samples) -> Figure:
    """MD against samples with and without weights, along the torsion."""
    atoms = torch.tensor([reference.torsion])
    data = reference.all
    angles = torsion_angles(samples.frames, atoms)[:, 0]
    profiles = {
        "MD": free_energy_profile(
            torsion_angles(data.frames, atoms)[:, 0], weights=data.weights, trajectory_ids=data.trajectory_ids
        ),
        title: free_energy_profile(angles),
    }
    if samples.weighted:
        profiles[f"{title}, weighted"] = free_energy_profile(angles, weights=samples.weights)
    label = torsion_label(reference.system.topology, reference.torsion)
    return free_energy_figure(profiles, {"phi": "φ", "psi": "ψ"}.get(label.partition(":")[0], "θ"))


def sizes(models: Mapping[str, Samples]) -> Figure:
    """Effective sample sizes against numbers of samples."""
    count = min(len(samples) for samples in models.values())
    places = torch.logspace(2, torch.tensor(count).log10().item(), 40).round().long().clamp(1, count).unique()
    growths = {
        title: effective_sample_size_growth(samples.log_weights[:count], places)
        for title, samples in models.items()
        if samples.select(slice(int(places[0]))).weighted
    }
    return effective_sample_size_figure(places, growths)


def training(logs: Mapping[str, Sequence[Line]], coordinates: Mapping[str, str]) -> Figure:
    """Effective sample size (of a few samples) against time and energy evaluations, and held-out likelihood.

    -log q depends on the coordinates: models of other ones have axes of their own.

    Args:
        logs: lines of each model, by title.
        coordinates: what the coordinates of each model are called, by title.
    """
    kinds = list(dict.fromkeys(coordinates[title] for title in logs))
    rows = 1 if len(kinds) < 2 else 2
    figure = blank(PAGE, 2.4 * rows)
    first, second, *rest = figure.subplots(rows, 3 if rows == 1 else 2).flatten()
    likelihoods = dict(zip(kinds, rest, strict=False))
    for number, (title, lines) in enumerate(logs.items()):
        colour = COLOURS[number % len(COLOURS)]
        minutes = [line["seconds"] / 60 for line in lines]
        likelihoods[coordinates[title]].plot(minutes, [line.get("nll") for line in lines], color=colour, lw=1.0)
        percents = [100 * (line.get("ess") or 0.0) for line in lines]
        first.plot(minutes, percents, color=colour, lw=1.0, label=title)
        with_energies = [(line["energy_evaluations"] / 1e6, share) for line, share in zip(lines, percents, strict=True)]
        later = [pair for pair in with_energies if pair[0] > 0]
        second.plot([x for x, _ in later], [y for _, y in later], color=colour, lw=1.0)
    first.set(xlabel="wall time / min", ylabel="ESS of 2,000 samples / %")
    second.set(xlabel="energy evaluations / 10⁶", ylabel="ESS of 2,000 samples / %")
    for kind, axis in likelihoods.items():
        axis.set(xlabel="wall time / min", ylabel="held-out −log q / nats")
        if len(kinds) > 1:
            axis.set_title(f"torsions: {kind}", fontsize=7)
    for axis in (first, second, *likelihoods.values()):
        plain(axis, legend=axis is first and bool(logs))
    return figure
