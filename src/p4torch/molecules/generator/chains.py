"""Frames of Markov chains, and how fast the chains forget."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch.molecules.analysis.bootstrap import correlation_blocks
from p4torch.molecules.analysis.free_energy import POSITIVE_PHI
from p4torch.molecules.analysis.inputs import same_length
from p4torch.molecules.analysis.torsions import Arc, in_arc, torsion_angles
from p4torch.molecules.renamed import renamed_fields


@dataclass(frozen=True)
class Mixing:
    """How fast chains forget a series: n frames are worth n / g independent ones, g = 1 + 2τ.

    g is ∞, and frames are worth nothing, where the series never changes: nothing can be said.
    """

    inefficiency: float
    effective_samples: float
    effective_samples_per_second: float

    @property
    def autocorrelation_time(self) -> float:
        """τ: the autocorrelation, summed over all lags from 1 on, in steps of one chain."""
        return (self.inefficiency - 1) / 2


@renamed_fields(walkers="trajectory_ids")
@dataclass(frozen=True)
class Chains:
    """Frames of the Boltzmann distribution, all of the same weight, but correlated along each chain.

    Step after step, and in each one chain after another: the analysis takes `trajectory_ids` beside a series.

    Attributes:
        frames: `(steps * chains, atoms, 3)` in nm.
        energies: u(x) = U(x) / kT, `(steps * chains,)`, float64.
        log_weights: of the frames as samples of the generator, `(steps * chains,)`, float64: chains stay long where
            they are large.
        trajectory_ids: the chain of each frame, `(steps * chains,)`.
        accepted: which of the generator's proposals were, `(steps, chains)`.
        local_acceptance: the share of the local moves that were accepted; None without such.
        seconds: of wall time, the discarded steps included.
    """

    frames: Tensor
    energies: Tensor
    log_weights: Tensor
    trajectory_ids: Tensor
    accepted: Tensor
    local_acceptance: float | None
    seconds: float

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def acceptance(self) -> float:
        """The share of the generator's proposals that were accepted."""
        return float(self.accepted.double().mean())

    def inside(self, torsion: tuple[int, int, int, int], region: Arc = POSITIVE_PHI) -> Tensor:
        """In which frames a torsion lies in a region, `(frames,)` booleans."""
        return in_arc(torsion_angles(self.frames, torch.tensor([torsion]))[:, 0], region)

    def mixing(self, series: Tensor | None = None) -> Mixing:
        """Of a series `(frames,)`, such as `inside(torsion)`; by default of the energies.

        Chains much shorter than 50 τ, or with steps in which they still forget their start, show a τ that is too small.
        """
        values = (self.energies if series is None else series).double()
        same_length(values, self.energies, "series")
        constant = bool((values == values[0]).all())
        inefficiency = math.inf if constant else correlation_blocks(values, self.trajectory_ids).inefficiency
        effective = len(self) / inefficiency
        return Mixing(inefficiency, effective, effective / self.seconds)
