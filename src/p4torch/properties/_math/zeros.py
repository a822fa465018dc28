"""Entries that are only ever multiplied: what is 0 stays 0, and what is positive should stay positive."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch.errors import ProjectionWarning, PropertyWarning, warn


def warn_of_clipped_entries(negative: Tensor, name: str) -> None:
    """Warn how many negative entries become zeros that never train. `negative` is a mask."""
    count = f"{int(negative.sum())} of {negative.numel()} entries"
    warn(f"`{name}`: {count} are negative: they become 0 and stay 0 without a `floor`", ProjectionWarning)


def warn_of_untrained_zeros(tensor: Tensor, name: str, rows: bool) -> None:
    """Warn how many entries are 0, and so never train; and how many of the rows that sum to 1 (`rows`) have a single
    nonzero entry, and do not train at all."""
    zeros = tensor == 0
    if not bool(zeros.any()) or tensor.shape[-1:] == (1,):
        return
    text = f"{int(zeros.sum())} of {zeros.numel()} entries are 0, which stay 0 and have no gradient"
    single = int(((~zeros).sum(-1) == 1).sum()) if rows else 0
    if single:
        text += f"; {single} of {zeros[..., 0].numel()} rows have a single positive entry, and do not train at all"
    warn(
        f"`{name}`: {text}. Give a `floor`, such as 1e-2, that lifts them, or floor=0 if they are meant",
        PropertyWarning,
    )


def rounded_positive(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """A float64 tensor in a shorter dtype; a positive entry that would underflow becomes its smallest normal number."""
    return torch.where(exact > 0, exact.clamp_min(torch.finfo(dtype).tiny), exact).to(dtype)
