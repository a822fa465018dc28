"""Errors of averages over correlated frames: a bootstrap that resamples blocks of consecutive frames.

Every estimate here is a function of sums over frames, and a resampled sum is Σ_b c_b s_b, with s_b the sum over
block b and c_b how often it was drawn: one small matrix product, whatever the number of frames.
Source: Künsch, Annals of Statistics 17 (1989) 1217; Flyvbjerg and Petersen, J. Chem. Phys. 91 (1989) 461.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch._options import check_integer
from p4torch.molecules.analysis.optional import optional

BLOCK_LENGTH = 5
"""Frames of a block, in statistical inefficiencies g. Of an exponential memory, blocks of length L miss g / 2L of the
variance: errors come out 5 % too small."""
LEAST_BLOCKS, MOST_BLOCKS = 20, 1000
"""Fewer blocks tell no error; more of them do not tell it better than 1 / √(2 · 1000) = 2 %."""


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, in the same unit."""

    value: float
    error: float


@dataclass(frozen=True)
class Blocks:
    """`index` `(frames,)` says which of `count` blocks a frame belongs to; `inefficiency` is g = 1 + 2τ in frames."""

    index: Tensor
    count: int
    inefficiency: float

    @property
    def length(self) -> float:
        """Frames of a block, on average."""
        return len(self.index) / self.count

    def sums(self, values: Tensor) -> Tensor:
        """`(count, k)`: the sum of values `(frames, k)` over each block."""
        return values.new_zeros(self.count, values.shape[-1]).index_add_(0, self.index, values)


def correlation_blocks(series: Tensor, trajectory_ids: Tensor) -> Blocks:
    """Blocks of consecutive frames of one trajectory, long enough to be nearly independent of each other.

    A block has 5 g frames, with g the statistical inefficiency of the series, and at least a thousandth of all frames;
    but never more than a twentieth, so that at least 20 blocks remain. With g above a hundredth of the frames, blocks
    are therefore shorter than they should be and the error is a lower bound: `inefficiency` shows it.

    Args:
        series: `(frames,)` or `(frames, k)`, finite; g is the largest of the columns.
        trajectory_ids: `(frames,)` as 0, 1, ...; the frames of each trajectory in the order of time.
    """
    lengths = torch.bincount(trajectory_ids)
    order = torch.argsort(trajectory_ids, stable=True)
    inefficiency = _inefficiency(series.reshape(len(series), -1)[order], lengths)
    frames = len(series)
    length = max(min(max(BLOCK_LENGTH * inefficiency, frames / MOST_BLOCKS), frames / LEAST_BLOCKS), 1.0)
    blocks = (lengths / length).ceil().long()
    of_frame = trajectory_ids[order]
    position = torch.arange(frames, device=series.device) - (lengths.cumsum(0) - lengths)[of_frame]
    index = torch.empty_like(order)
    index[order] = (blocks.cumsum(0) - blocks)[of_frame] + position * blocks[of_frame] // lengths[of_frame]
    return Blocks(index, int(blocks.sum()), inefficiency)


def resample(sums: Tensor, replicates: int = 200, seed: int = 0) -> Tensor:
    """`(replicates, k)`: sums over as many blocks as there are, drawn with replacement, of block sums `(blocks, k)`.

    Raises:
        ArgumentError: `replicates` is not an integer >= 2.
    """
    check_integer("replicates", replicates, 2)
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(len(sums), (replicates, len(sums)), generator=generator)
    counts = torch.zeros(indices.shape, dtype=torch.float64)
    counts.scatter_add_(1, indices, torch.ones_like(counts))
    return counts.to(sums.device) @ sums


def standard_error(replicas: Tensor, blocks: int) -> Tensor:
    """`(...)`: the spread of replicas `(replicates, ...)` of an estimate made from so many blocks.

    √(blocks / (blocks − 1)) undoes the bias of the bootstrap's variance. Infinite where a replica is not finite: an
    estimate that a resample can destroy rests on too few blocks for an error.
    """
    finite = replicas.isfinite().all(0)
    spread = replicas.where(replicas.isfinite(), 0.0).std(0) * math.sqrt(blocks / max(blocks - 1, 1))
    return spread.where(finite, math.inf)


def resampled_ratio(numerator: Tensor, denominator: Tensor, blocks: Blocks, replicates: int, seed: int) -> Tensor:
    """`(replicates,)`: Σ numerator / Σ denominator, both `(frames,)`, in each resample."""
    over, under = resample(blocks.sums(torch.stack([numerator, denominator], -1)), replicates, seed).unbind(-1)
    return over / under


def _inefficiency(columns: Tensor, lengths: Tensor) -> float:
    """The largest g of the columns of `(frames, k)`, sorted by trajectories; 1 for a constant one.

    The sum over lags takes ever larger steps: a second for 600,000 frames, and g comes out up to a fifth too large.
    """
    timeseries = optional("pymbar.timeseries", "molecules")
    largest = 1.0
    for column in columns.cpu().unbind(-1):
        if bool((column != column[0]).any()):
            walks = [walk.numpy() for walk in column.split(lengths.tolist())]
            largest = max(largest, float(timeseries.statistical_inefficiency_multiple(walks, fast=True)))
    return largest
