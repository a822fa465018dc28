"""Frames as a flow sees them, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch.flows.latent import Distribution
from p4torch.molecules.frames import normalize_weights, resampled_indices
from p4torch.molecules.generator.schedule import Phase
from p4torch.molecules.mixed import MixedCoordinates
from p4torch.parametrize.sites import counter_based_generator

#: Frames that are encoded together: bounds the memory.
CHUNK = 20_000


class Encoded:
    """Coordinates `(frames, n)` of weighted frames, and log|det| of the map there, `(frames,)`; computed in float64."""

    def __init__(self, coordinates: MixedCoordinates, frames: Tensor, weights: Tensor | None = None) -> None:
        self.z = torch.empty(len(frames), coordinates.layout.size, device=frames.device)
        self.logabsdet = torch.empty(len(frames), device=frames.device)
        for start in range(0, len(frames), CHUNK):
            chosen = slice(start, start + CHUNK)
            self.z[chosen], self.logabsdet[chosen] = coordinates(frames[chosen].double())
        self.weights = normalize_weights(weights, len(frames), frames)
        self._cumulated = self.weights.cumsum(0)

    def __len__(self) -> int:
        return len(self.z)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`(count, n)`: frames drawn with replacement, each as often as its weight says."""
        return self.z[resampled_indices(self._cumulated, count, generator)]


@dataclass(frozen=True, eq=False)
class Batches:
    """Chunks `(c, samples + frames, n)` of c batches of a phase, from step `done` on: latent points, then frames.

    A chunk is a pure function of the seed, the phase's index and the step, so that a run that was stopped sees what it
    would have seen. Chunks end at multiples of c.
    """

    data: Encoded | None
    base: Distribution
    phase: Phase
    seed: int
    index: int = 0
    done: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(self.done, self.phase.steps, self.phase.chunk):
            count = min(self.phase.chunk, self.phase.steps - start)
            generator = counter_based_generator(self.seed, f"batches/{self.index}", start)
            yield torch.stack([self._batch(generator) for _ in range(count)])

    def _batch(self, generator: torch.Generator) -> Tensor:
        latent, frames = self.phase.samples, self.phase.frames
        parts = [self.base.sample(latent, generator)] if latent else []
        if self.data is not None and frames:
            parts.append(self.data.draw(frames, generator))
        return torch.cat(parts)
