"""The steps that an optimizer really makes, counted by hooks: not every call of a training loop is one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from p4torch._eager import eager
from p4torch.errors import OptimizerError, StallWarning, warn

#: So many calls in a row without a step of the optimizer, in which B moved: another one steps.
FOREIGN = 5
#: So many in a row without a step at all are told, once: gradients are hardly accumulated that long.
IDLE = 1000


class StepCounter:
    """Counts the steps of an optimizer since it was last asked.

    Gradient accumulation, loss scaling and skipped steps call a schedule without one. `version` says by a number that
    changes with it whether B was written to; the device is not asked.
    """

    def __init__(self, optimizer: Optimizer, version: Callable[[], int]) -> None:
        self.made, self._left_out = 0, False
        self._version, self._last = version, version()
        self._foreign, self._idle = 0, 0
        self.watch(optimizer)

    def watch(self, optimizer: Optimizer) -> None:
        """Count the steps of this one. Those before its state is loaded are none: torch's distributed checkpoints make
        one to have a state to load into."""
        optimizer.register_step_post_hook(weak_hook(self._count))
        optimizer.register_load_state_dict_post_hook(weak_hook(self.restart))

    def _count(self) -> None:
        self.made += not self._left_out
        self._left_out = False

    def leave_out(self) -> None:
        """The step that comes next is none: it has no gradients."""
        self._left_out = True

    def take(self) -> int:
        """How many steps there were since the last call.

        Raises:
            OptimizerError: the optimizer has made none in several calls, but B moved in each.
        """
        made, self.made = self.made, 0
        if made:
            self._foreign = self._idle = 0
            return made
        self._idle += 1
        self._foreign = self._foreign + 1 if self._version() != self._last else 0
        self.restart()
        if self._foreign == FOREIGN:
            raise OptimizerError(
                f"`optimizer` must be the one that steps, but made no step in {FOREIGN} calls of `step()` in which the "
                "perturbations moved: it has been replaced, or another one was given to the MergeScheduler"
            )
        if self._idle == IDLE:
            warn(
                f"`optimizer` made no step in {IDLE} calls of `MergeScheduler.step()`, so that nothing merges: is it "
                "the optimizer that trains this model (not a copy of it), and does `step()` follow `optimizer.step()`?",
                StallWarning,
            )
        return 0

    def restart(self) -> None:
        """Begin anew with B as it is now, merged or loaded. Steps that were made before and not taken do not count:
        reading a state for `torch.distributed.checkpoint` makes one, of length 0."""
        self.made, self._last = 0, self._version()


def weak_hook(method: Callable[[], None]) -> Callable[..., None]:
    """A bound method as a hook of an optimizer that does not keep the method's object alive, and is not compiled with
    the optimizer's step."""
    reference = weakref.WeakMethod(method)

    @eager
    def hook(*_: Any) -> None:
        method = reference()
        if method is not None:
            method()

    return hook
