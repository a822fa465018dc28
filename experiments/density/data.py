"""The data: chunks of whole batches, each a pure function of the seed and its place, and held-out sets."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from experiments.targets import get_target
from p4torch.parametrize.sites import counter_based_generator

#: Batches that are drawn at once. Runs stop and resume between chunks.
CHUNK = 50

TEST_POINTS = 100_000
VALIDATION_POINTS = 20_000
LOG_POINTS = 5_000

_HELD_OUT = 2**31  # no training seed
_SIZES = {"test": TEST_POINTS, "validation": VALIDATION_POINTS, "log": LOG_POINTS}


class TrainingChunks:
    """Chunks `(c, batch, 2)`, c <= CHUNK, from step `start` (a multiple of CHUNK) to `steps`.

    Chunk i is drawn by a generator of its own, keyed by (seed, target, i): a resumed run sees what it would have seen,
    and all models see the same.
    """

    def __init__(self, target: str, seed: int, batch: int, steps: int, start: int = 0) -> None:
        self.target, self.seed, self.batch, self.steps, self.start = get_target(target), seed, batch, steps, start

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(self.start, self.steps, CHUNK):
            generator = counter_based_generator(self.seed, f"data/{self.target.name}", first // CHUNK)
            points = self.target.sample(CHUNK * self.batch, generator).view(CHUNK, self.batch, 2)
            yield points[: self.steps - first]


def held_out(target: str, split: str) -> tuple[Tensor, Tensor]:
    """Points `(m, 2)` that no model trains on, and their exact log p `(m,)`."""
    law = get_target(target)
    points = law.sample(_SIZES[split], counter_based_generator(_HELD_OUT, f"{split}/{target}", 0))
    with torch.no_grad():
        return points, law.log_density(points)
