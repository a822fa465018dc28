"""One optimizer step with warm-up and clipping, for whatever loop makes it."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from p4torch.training.flat_adam import FlatAdam


def warmup_cosine(step: int, steps: int, warmup: int = 100) -> float:
    """The factor of the learning rate at a step (from 0): linear up to 1 in `warmup` steps, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def descend(
    optimizer: FlatAdam, loss: Tensor, rate: float, clip: float, usable: Callable[[Tensor], bool] = lambda norm: True
) -> None:
    """A step along the gradient of a loss `()`, all parameters' clipped together; none where the norm is not usable.

    A group of parameters may have a `share` of the rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
    optimizer.zero_grad()
    loss.backward()
    if usable(optimizer.clip(clip)):
        optimizer.step()
