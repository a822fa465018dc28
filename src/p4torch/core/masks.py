"""Which elements of a stack are finite, and writing to some of them."""

from __future__ import annotations

import torch
from torch import Tensor


def assign(tensor: Tensor, value: Tensor, where: Tensor) -> None:
    """tensor <- value in place, where the mask `(...)` says so, for a tensor `(..., n, k)`."""
    if bool(where.all()):
        tensor.copy_(value)
    elif bool(where.any()):
        mask = where.reshape(where.shape + (1,) * (tensor.dim() - where.dim()))
        tensor.copy_(torch.where(mask, value.to(tensor.dtype), tensor))


def finite(tensor: Tensor, batch: int) -> Tensor:
    """Where all of an element of S is finite: a mask over the first `batch` dimensions."""
    if bool(all_finite(tensor)):
        return torch.ones(tensor.shape[:batch], dtype=torch.bool, device=tensor.device)
    mask = tensor.isfinite()
    return mask.flatten(batch).all(-1) if mask.dim() > batch else mask


def all_finite(tensor: Tensor) -> Tensor:
    """Whether all numbers are finite, `()`. Minimum and maximum propagate what is not, in a single pass."""
    real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    if real.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    return torch.stack(torch.aminmax(real)).isfinite().all()
