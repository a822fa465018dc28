"""What callbacks of trainers share: a scheduler that is attached to the trainer's optimizer while training runs."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from p4torch._options import check_integer
from p4torch.merging.scheduler import MergeScheduler


class AttachedScheduler:
    """Makes a `MergeScheduler` when training begins and attaches it to the optimizer until training ends. `every` and
    `options` are those of `MergeScheduler`."""

    def __init__(self, every: int | None, options: dict[str, Any]) -> None:
        self.every = None if every is None else check_integer("every", every, 1)
        self.options = options
        self.scheduler: MergeScheduler | None = None
        self._hook: RemovableHandle | None = None

    @property
    def merged(self) -> int:
        """Tensors merged so far."""
        return self.scheduler.merged if self.scheduler else 0

    @property
    def skipped(self) -> int:
        """Merges skipped so far."""
        return self.scheduler.skipped if self.scheduler else 0

    def _make(self, model: nn.Module, optimizer: Optimizer) -> MergeScheduler:
        """A new scheduler, in place of one of an earlier training; not yet attached."""
        self._detach()
        self.scheduler = MergeScheduler(model, optimizer, self.every, **self.options)
        return self.scheduler

    def _attach(self) -> None:
        if self.scheduler is not None:
            self._hook = self.scheduler.attach()

    def _detach(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
