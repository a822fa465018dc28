"""What `p4torch molecule sample` does: draw from a trained generator, and say what the samples are worth."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.free_energy import POSITIVE_PHI, free_energy_profile
from p4torch.molecules.analysis.histograms import ramachandran_histogram
from p4torch.molecules.analysis.plots import free_energy_figure, ramachandran_figure
from p4torch.molecules.analysis.torsions import arc_text, torsion_angles
from p4torch.molecules.analysis.weights import summarize_weights
from p4torch.molecules.command import Molecule
from p4torch.molecules.generator.generator import BoltzmannGenerator
from p4torch.molecules.generator.reference import BINS, plane, principal_torsion
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.generator.trajectories import write_trajectories
from p4torch.molecules.system import MolecularSystem
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import writable_folder
from p4torch.runs.progress import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The spline flow with P4 layers of `results/alanine-dipeptide`, a part of the package.
SHIPPED = Path(__file__).parents[1] / "data" / "alanine-dipeptide.safetensors"


def run_sampling(
    weights: Path | None, molecule: Molecule, count: int, seed: int, out: Path, console: Console
) -> Samples:
    """Samples, weights and figures in the folder `out`."""
    system = molecule.system()
    generator = BoltzmannGenerator.load(weights or SHIPPED, system)
    writable_folder(out)
    started = time.monotonic()
    samples = generator.sample(count, torch.Generator().manual_seed(seed))
    seconds = time.monotonic() - started
    write_trajectories(out, system, samples, seed)
    for name, figure in _figures(system, samples).items():
        write_whole(out / f"{name}.png", partial(figure.savefig, format="png", dpi=200))
    for line in _words(generator, samples, seconds):
        say(console, line)
    say(console, f"Frames, weights and figures: {out}")
    return samples


def _words(generator: BoltzmannGenerator, samples: Samples, seconds: float) -> list[str]:
    lines = [f"{generator.system!r}, model {generator.model}", f"{len(samples):,} samples in {seconds:.1f} s"]
    if not samples.weighted:
        return [*lines, "None of them has a weight above zero: this generator is not trained for this molecule."]
    result = summarize_weights(samples.log_weights)
    effective, largest = 100 * result.raw, 100 * result.largest_share
    lines.append(f"Effective sample size: {effective:.1f} %, the largest weight is {largest:.2g} % of all")
    try:
        difference = generator.free_energy_difference(samples)
    except ArgumentError:
        return [*lines, "Free-energy difference: one of the regions was never visited"]
    told = f"{difference.value:.2f} ± {difference.error:.2f} kT"
    return [*lines, f"Free-energy difference of θ from {arc_text(POSITIVE_PHI)} against the rest: {told}"]


def _figures(system: MolecularSystem, samples: Samples) -> dict[str, Figure]:
    """Of weighted samples, where there are weights."""
    weights = samples.weights if samples.weighted else None
    theta = torsion_angles(samples.frames, torch.tensor([principal_torsion(system)]))[:, 0]
    first, second = torsion_angles(samples.frames, torch.tensor(plane(system))).unbind(-1)
    return {
        "free-energy": free_energy_figure({"samples": free_energy_profile(theta, weights=weights)}),
        "torsions": ramachandran_figure({"samples": ramachandran_histogram(first, second, BINS, weights)}),
    }
