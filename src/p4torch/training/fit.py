"""Maximum likelihood of a flow, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from p4torch.flows import Flow
from p4torch.merging.scheduler import MergeScheduler
from p4torch.training.flat_adam import FlatAdam
from p4torch.training.steps import descend, warmup_cosine


class Fit:
    """Adam: linear warm-up, then a cosine to 0, as a pure function of the step; gradients are clipped.

    Args:
        flow: called with a batch, returns log p of each point.
        steps: of the whole training.
        learning_rate: at its top.
        clip: largest norm of the gradient of all parameters together.
        done: steps made before, after a resume.
        groups: of parameters; a group may have a `share` of the rate. By default one of all that train.
    """

    def __init__(
        self,
        flow: Flow,
        steps: int,
        learning_rate: float,
        *,
        clip: float = 1.0,
        done: int = 0,
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        self.flow, self.steps, self.learning_rate, self.clip = flow, steps, learning_rate, clip
        trainable = [value for value in flow.parameters() if value.requires_grad]
        self.optimizer = FlatAdam(trainable if groups is None else groups, lr=learning_rate)
        self.merges: MergeScheduler | None = None
        self.done, self.seconds = done, 0.0

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

    @torch.enable_grad()
    def train(self, batches: Tensor, probe: Callable[[], None] | None = None) -> Tensor:
        """A step for each of the batches `(c, batch, n)`, with its merges; the mean loss, `()`.

        `probe` is called before the last step, when perturbations are far from their reset. `seconds` adds up.
        """
        self.flow.train()
        started, total = time.perf_counter(), torch.zeros((), device=batches.device)
        for index, batch in enumerate(batches.unbind(0)):
            if probe is not None and index == len(batches) - 1:
                probe()
            total += self.step(batch)
        self.seconds += time.perf_counter() - started
        return total / len(batches)

    def step(self, batch: Tensor) -> Tensor:
        """One optimizer step; the detached loss, `()`."""
        loss, rate = self.loss(batch), self.learning_rate * warmup_cosine(self.done, self.steps)
        descend(self.optimizer, loss, rate, self.clip, self.usable)
        self.done += 1
        return loss.detach()

    def loss(self, batch: Tensor) -> Tensor:
        """Of one batch, `()`."""
        return -self.flow(batch).mean()

    def usable(self, norm: Tensor) -> bool:
        """Whether the optimizer is to step along a gradient of this norm."""
        return True
