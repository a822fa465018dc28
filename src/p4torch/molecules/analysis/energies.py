"""Energies of samples against those of the data: shifts, and the share of samples that are low in energy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch.molecules.analysis.bootstrap import Estimate, correlation_blocks, resampled_ratio, standard_error
from p4torch.molecules.analysis.inputs import log_series, normalize_weights, refuse, series, share_of, trajectory_index
from p4torch.molecules.renamed import renamed_keywords


@dataclass(frozen=True)
class EnergyComparison:
    """Samples against data, in the unit of the energies.

    Attributes:
        threshold: the largest energy of the data, or its quantile; an energy up to it is low.
        low_energy_fraction: the share of low samples; the threshold counts as known.
        mean_shift: mean over low samples minus mean over low data; NaN without a low sample.
        median_shift: median of all samples minus median of all data.
    """

    threshold: float
    low_energy_fraction: Estimate
    mean_shift: Estimate
    median_shift: Estimate


@renamed_keywords(walkers="trajectory_ids", data_walkers="data_trajectory_ids")
def compare_energies(
    samples: Tensor,
    data: Tensor,
    *,
    weights: Tensor | None = None,
    data_weights: Tensor | None = None,
    trajectory_ids: Tensor | None = None,
    data_trajectory_ids: Tensor | None = None,
    quantile: float = 1.0,
    replicates: int = 200,
    seed: int = 0,
) -> EnergyComparison:
    """Compare energies of samples `(n,)` with energies of the data `(frames,)`, of one unit.

    A generator's samples hold a few enormous energies that decide any plain mean: the mean goes over energies up to
    a threshold, and its share of the samples belongs beside it.

    Args:
        samples: finite, or +∞, which lies above every threshold.
        data: finite, in the order of time.
        weights: of the samples, not negative; `data_weights`: of the data.
        trajectory_ids: the chain of each sample, integers; one chain if None. `data_trajectory_ids`: of the data.
        quantile: of the data's energies, where the threshold lies; 1 is the largest energy.
        replicates: of the block bootstrap behind the errors.

    Raises:
        ArgumentError: empty, NaN, of different lengths; unusable weights; a quantile outside (0, 1].
    """
    samples, data = log_series(samples, "samples", zero=math.inf), series(data, "data")
    share_of(quantile, "quantile", whole=True)
    sample_weights = normalize_weights(weights, samples)
    normalized = normalize_weights(data_weights, data, "data_weights")
    counted = data[normalized > 0]
    threshold = float(counted.max() if quantile == 1 else weighted_quantile(data, _levels(quantile), data_weights))
    chain = trajectory_index(trajectory_ids, samples)
    trajectory = trajectory_index(data_trajectory_ids, data, "data_trajectory_ids")
    ours = _Sample(samples, sample_weights, chain, threshold, replicates, seed)
    theirs = _Sample(data, normalized, trajectory, threshold, replicates, seed + 1)
    return EnergyComparison(
        threshold=threshold,
        low_energy_fraction=ours.low_fraction,
        mean_shift=_difference(ours.low_mean, theirs.low_mean),
        median_shift=_difference(ours.median, theirs.median),
    )


def weighted_quantile(values: Tensor, levels: Tensor, weights: Tensor | None = None) -> Tensor:
    """`(k,)`: for each level `(k,)` in [0, 1] the smallest of the values `(n,)` whose cumulative share reaches it.

    Raises:
        ArgumentError: empty or NaN values, levels outside [0, 1], unusable weights.
    """
    values, levels = log_series(values, "values", zero=math.inf), series(levels, "levels")
    refuse((levels < 0) | (levels > 1), "levels", "in [0, 1]", "not")
    weights = normalize_weights(weights, values)
    order = values.argsort()
    order = order[weights[order] > 0]
    place = torch.searchsorted(weights[order].cumsum(0), levels.to(values.device) - _ROUNDING)
    return values[order[place.clamp(max=len(order) - 1)]]


class _Sample:
    """Energies with normalised weights and blocks, cut at a threshold."""

    def __init__(
        self, energies: Tensor, weights: Tensor, trajectory_ids: Tensor, threshold: float, replicates: int, seed: int
    ) -> None:
        self.energies, self.weights, self.replicates, self.seed = energies, weights, replicates, seed
        self.low = (energies <= threshold) * weights
        self.clamped = energies.clamp(max=threshold)
        self.blocks = correlation_blocks(weights * (self.clamped - weights @ self.clamped), trajectory_ids)

    @property
    def low_fraction(self) -> Estimate:
        return self._ratio(self.low, self.weights)

    @property
    def low_mean(self) -> Estimate:
        return self._ratio(self.low * self.clamped, self.low)

    @property
    def median(self) -> Estimate:
        """The error is half of what the median moves by as the share below it moves by ± its error (Woodruff, 1952)."""
        levels = _levels(0.5)
        (median,) = weighted_quantile(self.energies, levels, self.weights)
        moved = self._ratio((self.energies <= median) * self.weights, self.weights).error
        low, high = weighted_quantile(
            self.energies, _levels(max(0.5 - moved, 0.0), min(0.5 + moved, 1.0)), self.weights
        )
        error = float(high - low) / 2
        return Estimate(float(median), error if math.isfinite(error) else math.inf)

    def _ratio(self, over: Tensor, under: Tensor) -> Estimate:
        replicas = resampled_ratio(over, under, self.blocks, self.replicates, self.seed)
        return Estimate(float(over.sum() / under.sum()), float(standard_error(replicas, self.blocks.count)))


def _difference(first: Estimate, second: Estimate) -> Estimate:
    """Of two independent estimates."""
    return Estimate(first.value - second.value, math.hypot(first.error, second.error))


def _levels(*levels: float) -> Tensor:
    return torch.tensor(levels, dtype=torch.float64)


_ROUNDING = 1e-12  # of the cumulative sum of weights: a level that a share reaches exactly must find it
