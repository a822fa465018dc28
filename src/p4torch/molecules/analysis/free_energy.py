"""Free energies along a torsion, in kT, with errors of the block bootstrap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.bootstrap import correlation_blocks, resample, resampled_ratio, standard_error
from p4torch.molecules.analysis.inputs import normalize_weights, series, trajectory_index
from p4torch.molecules.analysis.torsions import Arc, bin_edges, bin_index, in_arc
from p4torch.molecules.renamed import renamed_keywords

POSITIVE_PHI: Arc = (0.0, 2.4)
"""The region of φ, in rad, whose free energy a generator is most often judged by."""


@dataclass(frozen=True)
class FreeEnergyProfile:
    """F and its standard error in kT `(bins,)`, between edges `(bins + 1,)` in rad. Empty bins are infinite."""

    edges: Tensor
    free_energy: Tensor
    error: Tensor

    @property
    def centres(self) -> Tensor:
        """`(bins,)`: the middles of the bins in rad."""
        return (self.edges[1:] + self.edges[:-1]) / 2


@dataclass(frozen=True)
class FreeEnergyDifference:
    """ΔF and its standard error in kT, and what the error rests on: blocks, their length and g, both in frames."""

    value: float
    error: float
    blocks: int
    block_length: float
    inefficiency: float


@renamed_keywords(walkers="trajectory_ids")
def free_energy_profile(
    angles: Tensor,
    bins: int = 64,
    *,
    weights: Tensor | None = None,
    trajectory_ids: Tensor | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> FreeEnergyProfile:
    """F_i = −ln p_i + const, in kT, with p_i the share of angles `(frames,)` (rad) in bin i; the lowest bin is 0.

    Errors are those of −ln p_i, the constant left out, so the lowest bin has one, too. Infinite where a resample
    emptied the bin: it was visited in too few blocks. `trajectory_ids` as in `free_energy_difference`.

    Raises:
        ArgumentError: empty, not finite, of different lengths; unusable weights.
    """
    angles = series(angles, "angles", least=2)
    weight, place = normalize_weights(weights, angles), bin_index(angles, check_integer("bins", bins, 2))
    circle = torch.stack([angles.cos(), angles.sin()], -1)
    influence = weight[:, None] * (circle - weight @ circle)
    blocks = correlation_blocks(influence, trajectory_index(trajectory_ids, angles))
    sums = torch.bincount(blocks.index * bins + place, weight, minlength=blocks.count * bins).reshape(-1, bins)
    replicas = resample(sums, replicates, seed)
    free_energy = -sums.sum(0).log()
    return FreeEnergyProfile(
        edges=bin_edges(bins),
        free_energy=free_energy - free_energy.min(),
        error=standard_error(-(replicas / replicas.sum(-1, keepdim=True)).log(), blocks.count),
    )


@renamed_keywords(walkers="trajectory_ids")
def free_energy_difference(
    angles: Tensor,
    region: Arc = POSITIVE_PHI,
    other: Arc | None = None,
    *,
    weights: Tensor | None = None,
    trajectory_ids: Tensor | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> FreeEnergyDifference:
    """ΔF = −ln(P_A / P_B) in kT, of a region A of a torsion against another, B: by default, all the rest.

    Positive where A is the less likely. The blocks of the bootstrap follow the statistical inefficiency of what each
    frame adds to ΔF, w (1_A / P_A − 1_B / P_B), so that slow crossings, and weights that vary slowly, both count.
    The error cannot know of crossings that never happened. Infinite if a resample can miss a region.

    Args:
        angles: `(frames,)` in rad.
        region: A, from its first to its second angle, counter-clockwise; `other` is B.
        weights: of the frames, not negative.
        trajectory_ids: `(frames,)` integers, the trajectory of each frame, whose frames are in the order of time; one
            trajectory if None.
        replicates: of the bootstrap, drawn with `seed`.

    Raises:
        ArgumentError: a region in which no frame (of positive weight) lies; regions that overlap; angles empty, not
            finite or of another length than weights or trajectories.
    """
    angles = series(angles, "angles", least=2)
    weight, trajectory = normalize_weights(weights, angles), trajectory_index(trajectory_ids, angles)
    inside = in_arc(angles, region)
    beyond = ~inside if other is None else in_arc(angles, other, "other")
    if bool((inside & beyond).any()):
        raise ArgumentError.of("other", f"apart from `region` = {region}", f"{other}, with frames in both")
    first, second = inside * weight, beyond * weight
    shares_of_regions = _occupied(first.sum(), "region", region), _occupied(second.sum(), "other", other or "the rest")
    influence = first / shares_of_regions[0] - second / shares_of_regions[1]
    blocks = correlation_blocks(influence, trajectory)
    return FreeEnergyDifference(
        value=math.log(shares_of_regions[1] / shares_of_regions[0]),
        error=float(standard_error(resampled_ratio(second, first, blocks, replicates, seed).log(), blocks.count)),
        blocks=blocks.count,
        block_length=blocks.length,
        inefficiency=blocks.inefficiency,
    )


def _occupied(share: Tensor, name: str, region: object) -> float:
    if not share > 0:
        raise ArgumentError.of(name, "a region with frames of positive weight", f"none in {region}")
    return float(share)
