"""What a training step costs: a plain `nn.Linear(n, n)` against P4Inv of rank n/4, proposed scheme, merges included."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from experiments.linear import settings
from experiments.linear.config import BATCH, Job
from experiments.linear.job import layer, optimizer, scheduler

#: Merges a block: a block is as many whole intervals, so that merges count as they should.
INTERVALS_A_BLOCK = 4
BLOCKS, CAPPED_BLOCKS = 15, 3
#: Other merge intervals that the table tells the ratio for.
INTERVALS = (2, 10, 50)


@dataclass(frozen=True)
class Times:
    """Seconds a step, and how much of it goes into merges."""

    whole: float
    merging: float


@dataclass
class _Side:
    """One of the two layers, with its own optimizer and merges."""

    job: Job
    size: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.layer = layer(self.job, self.size)
        self.parameters = [value for value in self.layer.parameters() if value.requires_grad]
        self.optimizer = optimizer(self.job, self.parameters)
        self.merges = scheduler(self.job, self.layer, self.optimizer) if self.job.way != "plain" else None

    def block(self, x: torch.Tensor, y: torch.Tensor, steps: int) -> Times:
        """Seconds a step: forward, backward and Adam, and the share of the merges that fall into the block."""
        started, merging = time.process_time(), 0.0
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = (self.layer(x) - y).square().mean()
            loss.backward()
            self.optimizer.step()
            if self.merges is not None:
                before = time.process_time()
                self.merges.step()
                merging += time.process_time() - before
        return Times((time.process_time() - started) / steps, merging / steps)


def measure(size: int, blocks: int = BLOCKS) -> dict[str, Any]:
    """Both layers alternately in this process; medians over blocks, and quartiles of the ratio of neighbours.

    Processor time, so that what other programs do does not count: it is the time that passes as long as there is one
    thread. The learning rate is small: what is timed should not depend on where the training leads.
    """
    common: dict[str, Any] = {"problem": "rotation-64", "seed": 0, "steps": 1, "learning_rate": 1e-4}
    options = {**settings.PROPOSED, "rank": max(1, size // 4)}
    plain, p4inv = _Side(Job(**common, way="plain"), size), _Side(Job(**common, **options), size)
    x = torch.randn(BATCH, size, generator=torch.Generator().manual_seed(0))
    y = x.flip(-1)
    steps = INTERVALS_A_BLOCK * p4inv.job.every
    pairs = [(plain.block(x, y, steps), p4inv.block(x, y, steps)) for _ in range(blocks + 1)][1:]  # the first warms up
    ratios = [ours.whole / theirs.whole for theirs, ours in pairs]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    theirs, ours = statistics.median(p.whole for p, _ in pairs), statistics.median(p.whole for _, p in pairs)
    merging = statistics.median(p.merging for _, p in pairs)
    return {
        "size": size,
        "rank": p4inv.job.rank,
        "every": p4inv.job.every,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "blocks": blocks,
        "plain_seconds": theirs,
        "p4inv_seconds": ours,
        "merge_seconds": merging * p4inv.job.every,
        "step_ratio": ours / theirs,
        "step_ratio_quartiles": [quartiles[0], quartiles[2]],
        "step_ratio_without_merges": (ours - merging) / theirs,
        "step_ratio_by_interval": {  # from the two parts
            str(every): (ours - merging + merging * p4inv.job.every / every) / theirs for every in INTERVALS
        },
    }
