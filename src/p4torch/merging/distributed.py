"""What the ranks of a distributed run do together. Outside of one there is nothing to do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed as dist


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_mean() -> Callable[[Tensor], Tensor] | None:
    """The mean of a tensor over all ranks, or None outside a distributed run."""
    if not _distributed():
        return None

    def mean(tensor: Tensor) -> Tensor:
        total = tensor.contiguous()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    return mean


def all_reduce_min() -> Callable[[Tensor], Tensor] | None:
    """All ranks' minimum of a mask, or None outside a distributed run."""
    if not _distributed():
        return None

    def all_reduce_min(mask: Tensor) -> Tensor:
        votes = mask.to(torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        return votes.bool()

    return all_reduce_min
