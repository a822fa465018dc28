"""What a generator has drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from p4torch._options import check_integer
from p4torch.molecules.analysis.weights import normalized_weights
from p4torch.molecules.frames import resampled_indices


@dataclass(frozen=True)
class Samples:
    """Averages over the Boltzmann distribution are Σ w f / Σ w, with w = exp(log_weights).

    Attributes:
        frames: `(n, atoms, 3)` in nm.
        energies: u(x) = U(x) / kT, `(n,)`, float64; ∞ where it is not finite.
        log_prob: log q of the coordinates, `(n,)`, float64.
        log_weights: -u - log q + log|det|, up to a constant, `(n,)`, float64; -∞ for a point that no frame has, such as
            a negative bond length.
    """

    frames: Tensor
    energies: Tensor
    log_prob: Tensor
    log_weights: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def weighted(self) -> bool:
        """Whether any of them has a weight above zero: a generator far from its molecule draws none."""
        return bool(self.log_weights.isfinite().any())

    @property
    def weights(self) -> Tensor:
        """`(n,)`, of sum 1."""
        return normalized_weights(self.log_weights)

    def select(self, chosen: Tensor | slice) -> Samples:
        """Some of them, by a mask, indices or a slice."""
        return Samples(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def resample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`(count, atoms, 3)`: frames without weights, drawn with replacement, each as often as its weight says.

        There are no more independent ones among them than the effective sample size.
        """
        count = check_integer("count", count, 1)
        return self.frames[resampled_indices(self.weights.cumsum(0), count, generator)]

    @classmethod
    def cat(cls, parts: list[Samples]) -> Samples:
        """Several, one after another."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))
