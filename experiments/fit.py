"""Maximum likelihood of a flow, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from p4torch import MergeScheduler
from p4torch.flows import Flow
from p4torch.training import FlatAdam
from p4torch.training.steps import descend, warmup_cosine

#: Where the norm of the gradient is clipped.
CLIP = 1.0


class Fit:
    """Adam: linear warm-up, then a cosine to 0, as a pure function of the step; gradients are clipped.

    Args:
        flow: called with a batch, returns log p of each point.
        steps: of the whole training.
        learning_rate: at its top.
    """

    def __init__(self, flow: Flow, steps: int, learning_rate: float) -> None:
        self.flow, self.steps, self.learning_rate = flow, steps, learning_rate
        self.optimizer = FlatAdam([value for value in flow.parameters() if value.requires_grad], lr=learning_rate)
        self.merges: MergeScheduler | None = None
        self.done, self.seconds = 0, 0.0

    def merge(self, every: int, root: nn.Module | None = None, **options: Any) -> None:
        """Merge every so many steps; `options` as of `MergeScheduler`. Sites are named as in `root`, or the flow."""
        self.merges = MergeScheduler(self.flow if root is None else root, self.optimizer, every, **options)
        self.merges.attach()

    @property
    def merged(self) -> int:
        """Tensors merged so far."""
        return self.merges.merged if self.merges else 0

    @property
    def skipped(self) -> int:
        """Merges skipped so far."""
        return self.merges.skipped if self.merges else 0

    def train(self, batches: Tensor, probe: Callable[[], None] | None = None) -> Tensor:
        """A step for each of the batches `(c, batch, n)`, with its merges; the mean loss, `()`.

        `probe` is called before the last step, when perturbations are far from their reset. `seconds` adds up.
        """
        self.flow.train()
        started, total = time.perf_counter(), torch.zeros(())
        for index, batch in enumerate(batches.unbind(0)):
            if probe is not None and index == len(batches) - 1:
                probe()
            loss = -self.flow(batch).mean()
            descend(self.optimizer, loss, self.learning_rate * warmup_cosine(self.done, self.steps), CLIP)
            total += loss.detach()
            self.done += 1
        self.seconds += time.perf_counter() - started
        return total / len(batches)
