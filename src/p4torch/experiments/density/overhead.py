"""What Lightning itself costs of a training step: `python -m p4torch.experiments.density.overhead`."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from p4torch.experiments.density.data import CHUNK, TrainingChunks
from p4torch.experiments.density.models import p4inv
from p4torch.merging.scheduler import MergeScheduler
from p4torch.training import ChunkedFit, MergeCallback
from p4torch.training.chunks import quiet_trainer


@dataclass(frozen=True)
class Share:
    """Milliseconds of processor time of a step of the P4Inv flow, in a loop written by hand and under Lightning."""

    by_hand: float
    lightning: float

    @property
    def share(self) -> float:
        """Lightning's own share of its step."""
        return 1 - self.by_hand / self.lightning

    def __str__(self) -> str:
        return (
            f"by hand {self.by_hand:.2f} ms a step, under Lightning {self.lightning:.2f} ms: "
            f"its share is {100 * self.share:.1f} %"
        )


class _Clock(pl.Callback):
    """When each chunk ended, in processor time: what other programs do does not count."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *arguments: Any, **options: Any) -> None:
        self.times.append(time.process_time())


def lightning_share(repeats: int = 8, chunks: int = 3, batch: int = 256) -> Share:
    """Both loops in turn, so that a busy machine slows both; medians over all chunks.

    The loops share the step, the data and the merges, and differ in who calls them. Starting a trainer is not counted.
    """
    by_hand: list[float] = []
    lightning: list[float] = []
    for _ in range(repeats):
        by_hand += _durations(_by_hand(chunks, batch))
        lightning += _durations(_under_lightning(chunks, batch))
    scale = 1000 / CHUNK
    return Share(scale * statistics.median(by_hand), scale * statistics.median(lightning))


def _durations(times: list[float]) -> list[float]:
    return [late - early for early, late in itertools.pairwise(times)]


def _start(chunks: int, batch: int) -> tuple[ChunkedFit, TrainingChunks]:
    torch.manual_seed(0)
    steps = (chunks + 1) * CHUNK
    return ChunkedFit(p4inv(), steps, 1e-3), TrainingChunks("two-moons", 0, batch, steps)


def _by_hand(chunks: int, batch: int) -> list[float]:
    fit, data = _start(chunks, batch)
    optimizer = fit.configure_optimizers()
    MergeScheduler(fit, optimizer, every=50).attach()
    times = []
    for chunk in data:
        for points in chunk.unbind(0):
            fit.step(points, optimizer)
        times.append(time.process_time())
    return times


def _under_lightning(chunks: int, batch: int) -> list[float]:
    fit, data = _start(chunks, batch)
    clock = _Clock()
    quiet_trainer(MergeCallback(every=50), clock).fit(fit, DataLoader(data, batch_size=None))
    return clock.times


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(lightning_share())
