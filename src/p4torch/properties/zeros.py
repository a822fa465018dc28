"""Entries that are only ever multiplied: what is 0 stays 0, and what is positive should stay positive."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from p4torch.errors import ProjectionWarning


def warn_of_zeros(negative: Tensor) -> None:
    """Say how many negative entries become zeros that never train. `negative` is a mask."""
    warnings.warn(
        f"{int(negative.sum())} of {negative.numel()} entries are negative: they become 0 and stay 0 without a `floor`",
        ProjectionWarning,
        stacklevel=4,
    )


def rounded_positive(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """A float64 tensor in a shorter dtype; a positive entry that would underflow becomes its smallest normal number."""
    return torch.where(exact > 0, exact.clamp_min(torch.finfo(dtype).tiny), exact).to(dtype)
