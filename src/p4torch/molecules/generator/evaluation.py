"""What a trained generator is worth: every figure with the error that its samples and the data allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from p4torch.molecules.analysis.bootstrap import Estimate, correlation_blocks, resampled_ratio, standard_error
from p4torch.molecules.analysis.energies import EnergyComparison, compare_energies
from p4torch.molecules.analysis.free_energy import FreeEnergyDifference
from p4torch.molecules.analysis.histograms import Histogram, kl_divergence, total_variation
from p4torch.molecules.analysis.inputs import trajectory_index
from p4torch.molecules.analysis.weights import forward_effective_sample_size, summarize_weights
from p4torch.molecules.chirality import chiral_centres, inverted
from p4torch.molecules.generator.encoded import Encoded
from p4torch.molecules.generator.generator import BoltzmannGenerator
from p4torch.molecules.generator.reference import Reference
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.system import MolecularSystem
from p4torch.training.measures import inverse_residual, parameter_count

#: Numbers of samples that effective sample sizes are told of: they fall as rare samples of large weight come in.
SIZES = (100_000, 200_000)
#: Resamples of the bootstrap of Ramachandran histograms.
REPLICATES = 20
#: Standard deviation of the noise baseline, in nm.
NOISE = 0.004
#: Frames that are passed through a flow together.
CHUNK = 20_000


def evaluate(
    generator: BoltzmannGenerator, reference: Reference, samples: Samples, held_out: Encoded, nll: Tensor
) -> dict[str, Any]:
    """A row of figures of a generator, from samples of it, held-out frames and `held_out_nll` of them."""
    kT = reference.system.kT
    shape = _shape(reference, samples.energies)
    likelihood = held_out_mean(reference, nll)
    reweighted = reference.free_energy(samples.frames, samples.weights) if samples.weighted else None
    row: dict[str, Any] = {
        "model": generator.model,
        "parameters": parameter_count(generator),
        "temperature_K": reference.system.temperature,
        "samples": len(samples),
        **shape,
        "nll": likelihood.value,
        "nll_error": likelihood.error,
        **_ramachandran(reference, samples.frames),
        **_weights(samples),
        "ess_forward": _forward(reference, held_out, nll, samples),
        **_pair("delta_f_raw_kT", reference.free_energy(samples.frames)),
        **_pair("delta_f_kT", reweighted),
        **_pair("md_delta_f_kT", reference.difference),
        "unusable_share": float((samples.log_weights == -math.inf).double().mean()),
        "mirror_share": _wrong_chirality(reference.system, samples.frames),
        "inverse_residual": inverse_residual(generator.flow),
        "energy_shift_kJ_mol": None if shape["energy_shift_kT"] is None else shape["energy_shift_kT"] * kT,
    }
    if samples.weighted:
        reweighted_map = reference.histogram(samples.frames, samples.weights)
        row["ramachandran_tv_reweighted"] = total_variation(reweighted_map, reference.ramachandran)
        row["ramachandran_kl_reweighted"] = kl_divergence(reference.ramachandran, reweighted_map)
    return row


def held_out_nll(generator: BoltzmannGenerator, held_out: Encoded) -> Tensor:
    """-log q of each held-out frame, `(frames,)`, float64."""
    return -in_chunks(generator.flow.log_prob, held_out.z).double()


def held_out_mean(reference: Reference, values: Tensor) -> Estimate:
    """The weighted mean over held-out frames of what is told of each, `(frames,)`, with the error of a block bootstrap.

    Of the difference of two models' -log q it has a far smaller error than either mean: frames are the same.
    """
    data = reference.held_out
    weights = data.weights / data.weights.sum()
    mean = float(weights @ values)
    blocks = correlation_blocks(weights * (values - mean), trajectory_index(data.trajectory_ids, values))
    replicas = resampled_ratio(weights * values, weights, blocks, 200, 0)
    return Estimate(mean, float(standard_error(replicas, blocks.count)))


def floors(reference: Reference, sigma: float = NOISE, count: int = 50_000) -> list[dict[str, Any]]:
    """Rows of the same figures, as far as they apply, of held-out frames against those trained on (what no model can
    beat), and of frames with Gaussian noise of sigma nm on each coordinate."""
    kT, train, held_out = reference.system.kT, reference.train, reference.held_out
    halves = compare_energies(
        held_out.energies / kT,
        train.energies / kT,
        weights=held_out.weights,
        data_weights=train.weights,
        trajectory_ids=held_out.trajectory_ids,
        data_trajectory_ids=train.trajectory_ids,
    )
    first, second = (reference.histogram(part.frames, part.weights) for part in (train, held_out))
    split = {
        "model": "md-held-out",
        "temperature_K": reference.system.temperature,
        **_energies(halves),
        "ramachandran_tv": total_variation(first, second),
        "ramachandran_kl": kl_divergence(first, second),
        **_pair("delta_f_kT", reference.free_energy(held_out.frames, held_out.weights, held_out.trajectory_ids)),
        **_pair("md_delta_f_kT", reference.free_energy(train.frames, train.weights, train.trajectory_ids)),
    }
    frames = noisy_frames(reference, sigma, count)
    noisy = {
        "model": f"md-noise-{sigma:g}nm",
        "temperature_K": reference.system.temperature,
        **_shape(reference, reduced_energies(reference.system, frames)),
    }
    return [split, noisy]


def noisy_frames(reference: Reference, sigma: float = NOISE, count: int = 50_000) -> Tensor:
    """Held-out frames of equal weight, with Gaussian noise of sigma nm on each coordinate; always the same ones."""
    frames = reference.held_out.resample(count, torch.Generator().manual_seed(0)).double()
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(1), dtype=frames.dtype)
    return frames + sigma * noise


def reduced_energies(system: MolecularSystem, frames: Tensor) -> Tensor:
    """u(x) in kT, `(n,)`, in float64; ∞ where it is not finite."""
    energies = in_chunks(system.energy, frames.double())
    return energies.where(energies.isfinite(), math.inf)


@torch.no_grad()
def in_chunks(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The function of all points, some at a time."""
    return torch.cat([function(chunk) for chunk in points.split(CHUNK)])


def _shape(reference: Reference, energies: Tensor) -> dict[str, Any]:
    """Energies against those of all data."""
    data = reference.all
    compared = compare_energies(
        energies,
        data.energies / reference.system.kT,
        data_weights=data.weights,
        data_trajectory_ids=data.trajectory_ids,
    )
    return _energies(compared)


def _energies(compared: EnergyComparison) -> dict[str, Any]:
    return {
        **_known("energy_shift_kT", compared.mean_shift),
        **_known("energy_shift_median_kT", compared.median_shift),
        **_known("low_energy_fraction", compared.low_energy_fraction),
        "threshold_kT": compared.threshold,
    }


def _known(name: str, estimate: Estimate) -> dict[str, float | None]:
    """None for what no sample tells, such as a mean without one below the threshold."""
    values = {name: estimate.value, f"{name}_error": estimate.error}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _ramachandran(reference: Reference, frames: Tensor) -> dict[str, float]:
    """With errors of a bootstrap over the samples."""
    exact = reference.ramachandran
    result = reference.histogram(frames)
    generator = torch.Generator().manual_seed(0)
    probabilities = result.probabilities.flatten()
    draws = (torch.multinomial(probabilities, len(frames), True, generator=generator) for _ in range(REPLICATES))
    counts = [torch.bincount(draw, minlength=len(probabilities)) for draw in draws]
    replicas = [Histogram((count / len(frames)).reshape(result.probabilities.shape), result.edges) for count in counts]
    row = {}
    for name, distance in (("tv", total_variation), ("kl", lambda p, q: kl_divergence(q, p))):
        row[f"ramachandran_{name}"] = distance(result, exact)
        row[f"ramachandran_{name}_error"] = float(torch.tensor([distance(one, exact) for one in replicas]).std())
    return row


def _weights(samples: Samples) -> dict[str, Any]:
    """Effective sample sizes, as shares: of all samples, and of as many as `SIZES` says."""
    if not samples.weighted:
        return {"ess_raw": 0.0, "ess_clipped": 0.0, "largest_weight_share": 1.0, "ess_at": {}}
    at = {}
    for size in SIZES:
        if size <= len(samples) and samples.select(slice(size)).weighted:
            summary = summarize_weights(samples.log_weights[:size])
            at[str(size)] = {"raw": summary.raw, "clipped": summary.clipped, "largest_share": summary.largest_share}
    everything = summarize_weights(samples.log_weights)
    return {
        "ess_raw": everything.raw,
        "ess_clipped": everything.clipped,
        "largest_weight_share": everything.largest_share,
        "ess_at": at,
    }


def _forward(reference: Reference, held_out: Encoded, nll: Tensor, samples: Samples) -> float | None:
    """The effective share of held-out frames: they see modes that samples miss."""
    log_weights = -reference.held_out.energies / reference.system.kT - held_out.logabsdet.double() + nll
    return forward_effective_sample_size(
        log_weights, held_out.weights, samples.log_weights if samples.weighted else None
    )


def _wrong_chirality(system: MolecularSystem, frames: Tensor) -> float | None:
    """The share of frames with a chiral centre in the other form than the system's positions: D, for amino acids."""
    centres = chiral_centres(system.topology, system.positions)
    return float(inverted(frames, centres).any(-1).double().mean()) if centres else None


def _pair(name: str, result: FreeEnergyDifference | None) -> dict[str, float | None]:
    value, error = (None, None) if result is None else (result.value, result.error)
    return {name: value, f"{name}_error": error}
