"""Steps of an optimizer without training, for tests of what counts them."""

from __future__ import annotations

import p4torch as p4


def count(scheduler: p4.MergeScheduler) -> list[p4.MergeReport]:
    """A step without gradients, which moves nothing, and what the schedule does after it."""
    scheduler.optimizer.zero_grad()
    scheduler.optimizer.step()
    return scheduler.step()
