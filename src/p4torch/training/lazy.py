"""Merges in a training loop that makes its own optimizer, out of reach: found when it steps."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from p4torch._eager import eager
from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.merging.scheduler import MergeScheduler
from p4torch.parametrize.sites import sites


class LazyMergeScheduler:
    """A `MergeScheduler` for a loop that makes its optimizer later, inside a function that nobody wants to edit.

    The first step of an optimizer that holds perturbations of the model makes the scheduler and attaches it, before the
    step is made. An optimizer that comes after it, of a second training, gets a new one. Other optimizers are left
    alone.

        model = perturbed()
        LazyMergeScheduler(model, every=50)
        library.train(model)                # merges by itself

    It watches as long as the model lives, or until `remove()`, and keeps neither the model nor an optimizer alive.

    Args:
        model: with at least one site.
        every: N, in steps of the optimizer; None for the interval of each perturbation.
        options: of `p4torch.MergeScheduler`, which checks them when it is made.

    Raises:
        ArgumentError: no sites. What the scheduler refuses is raised by the first step of the optimizer.
    """

    def __init__(self, model: nn.Module, every: int | None = None, **options: Any) -> None:
        if not isinstance(model, nn.Module) or next(iter(sites(model)), None) is None:
            raise ArgumentError.of("model", "a module with at least one perturbed tensor", type(model).__name__)
        self.every, self.options = None if every is None else check_integer("every", every, 1), options
        self._of_optimizers: weakref.WeakKeyDictionary[Optimizer, weakref.ref[MergeScheduler]] = (
            weakref.WeakKeyDictionary()
        )
        self._others: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._latest: weakref.ref[MergeScheduler] | None = None
        self._model = weakref.ref(model, lambda _: self.remove())
        self._handle: RemovableHandle | None = register_optimizer_step_pre_hook(eager(self._before_step))

    @property
    def scheduler(self) -> MergeScheduler | None:
        """That of the optimizer that was seen last, while this lives; None before it steps."""
        return self._latest() if self._latest is not None else None

    def remove(self) -> None:
        """Watch no longer. A scheduler that is attached already goes on merging."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        model = self._model()
        if model is None or optimizer in self._of_optimizers:
            return
        held = {id(value) for group in optimizer.param_groups for value in group["params"]}
        if self._others.get(optimizer) == len(held):
            return
        if not any(id(value) in held for site in sites(model) for value in site.trainable().values()):
            self._others[optimizer] = len(held)
            return
        scheduler = MergeScheduler(model, optimizer, self.every, **self.options)
        scheduler.attach()  # from here on the optimizer keeps it
        self._of_optimizers[optimizer] = self._latest = weakref.ref(scheduler)
