"""Analysis of frames and of samples, weighted or not: histograms, energies, weights, free energies, figures.

Series are `(frames,)` tensors, counted in float64; `weights` are non-negative and need not be normalised
(`normalized_weights` makes them from log-weights). Angles in rad, energies in kJ/mol or kT.
"""

from p4torch.molecules.analysis.bootstrap import Estimate
from p4torch.molecules.analysis.crossings import Crossings, count_crossings
from p4torch.molecules.analysis.energies import EnergyComparison, compare_energies, weighted_quantile
from p4torch.molecules.analysis.free_energy import (
    FreeEnergyDifference,
    FreeEnergyProfile,
    free_energy_difference,
    free_energy_profile,
)
from p4torch.molecules.analysis.histograms import (
    Histogram,
    energy_histogram,
    kl_divergence,
    ramachandran_histogram,
    total_variation,
)
from p4torch.molecules.analysis.noise import NoiseBaseline, noise_baseline
from p4torch.molecules.analysis.plots import (
    effective_sample_size_figure,
    energy_figure,
    energy_violin_figure,
    free_energy_figure,
    ramachandran_figure,
)
from p4torch.molecules.analysis.tempering import tempering_free_energy_difference
from p4torch.molecules.analysis.torsions import in_arc, torsion_angles
from p4torch.molecules.analysis.weights import (
    WeightSummary,
    clip_log_weights,
    effective_sample_size,
    effective_sample_size_growth,
    forward_effective_sample_size,
    largest_weight_share,
    log_importance_weights,
    normalized_weights,
    summarize_weights,
)

__all__ = [
    "Crossings",
    "EnergyComparison",
    "Estimate",
    "FreeEnergyDifference",
    "FreeEnergyProfile",
    "Histogram",
    "NoiseBaseline",
    "WeightSummary",
    "clip_log_weights",
    "compare_energies",
    "count_crossings",
    "effective_sample_size",
    "effective_sample_size_figure",
    "effective_sample_size_growth",
    "energy_figure",
    "energy_histogram",
    "energy_violin_figure",
    "forward_effective_sample_size",
    "free_energy_difference",
    "free_energy_figure",
    "free_energy_profile",
    "in_arc",
    "kl_divergence",
    "largest_weight_share",
    "log_importance_weights",
    "noise_baseline",
    "normalized_weights",
    "ramachandran_figure",
    "ramachandran_histogram",
    "summarize_weights",
    "tempering_free_energy_difference",
    "torsion_angles",
    "total_variation",
    "weighted_quantile",
]
