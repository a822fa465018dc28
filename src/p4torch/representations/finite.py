"""Permutations of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p4torch._options import check_indices, check_integer
from p4torch.errors import ArgumentError
from p4torch.representations.representation import Representation


def permutations(orders: Tensor | Sequence[Sequence[int]]) -> Representation:
    """(ρ(g) x)_i = x_σ(i) for the generators σ of a group of permutations, `(g, n)` integers.

    Raises:
        ArgumentError: for what are no permutations of one length.
    """
    rows = torch.as_tensor(orders)
    if rows.dim() != 2 or rows.numel() == 0:
        raise ArgumentError.of("orders", "one permutation a row, (g, n)", tuple(rows.shape))
    for row in rows.tolist():
        check_indices("orders", row, rows.shape[-1], rows.shape[-1])
    return Representation(torch.eye(rows.shape[-1], dtype=torch.float64)[rows])


def cyclic(size: int) -> Representation:
    """Shifts of n features around a ring: one generator."""
    return permutations(torch.arange(check_integer("size", size, 1)).roll(-1).unsqueeze(0))


def symmetric(size: int) -> Representation:
    """All permutations of n features: two generators, an exchange and a shift."""
    exchanged = torch.arange(check_integer("size", size, 2))
    exchanged[:2] = torch.tensor([1, 0])
    return permutations(torch.stack([exchanged, torch.arange(size).roll(-1)]))
