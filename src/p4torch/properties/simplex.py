"""Rows on the simplex, and doubly stochastic matrices: weights, normalisation, Sinkhorn's sweeps, admission."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch.errors import ArgumentError

#: Sinkhorn's sweeps where they go on until rows and columns sum to 1, and how many of them are between two looks.
LIMIT, LOOK = 2000, 20


def weighted(base: Tensor, logs: Tensor, columns: bool = False) -> Tensor:
    """A ⊙ exp(X - c) with c the largest X of each row where A > 0, and then, with `columns`, of each column: no weight
    overflows, and not all of a row (or column) underflow. Both fall out of what is normalised afterwards."""
    positive = base > 0
    for dim in (-1, -2) if columns else (-1,):
        logs = logs - torch.where(positive, logs.detach(), -torch.inf).amax(dim, keepdim=True)
    return base * torch.where(positive, logs, 0).exp()


def rows_normalised(weights: Tensor) -> Tensor:
    """Each row by its sum."""
    return weights / weights.sum(-1, keepdim=True)


def sinkhorn(weights: Tensor, sweeps: int) -> Tensor:
    """D K D', after so many sweeps of Sinkhorn: columns by their sums, then rows. Rows sum to 1, columns nearly."""
    rows = 1 / weights.sum(-1, keepdim=True)
    columns = torch.ones_like(rows)
    for _ in range(sweeps):
        columns = 1 / (weights.mT @ rows)
        rows = 1 / (weights @ columns)
    return rows * weights * columns.mT


def doubly_normalised(weights: Tensor, tolerance: float) -> Tensor:
    """The limit of Sinkhorn's sweeps where they come within the tolerance in at most `LIMIT`."""
    for _ in range(LIMIT // LOOK):
        weights = sinkhorn(weights, LOOK)
        if not bool((distance(weights, True) > tolerance).any()):
            break
    return weights


def distance(tensor: Tensor, doubly: bool) -> Tensor:
    """The largest of |row sum - 1|, the negative entries and, if `doubly`, |column sum - 1|: `(...)` in float64."""
    exact = tensor.detach().double()
    parts = [(exact.sum(-1) - 1).abs().amax(-1), -exact.amin((-2, -1)).clamp_max(0)]
    if doubly:
        parts.append((exact.sum(-2) - 1).abs().amax(-1))
    return torch.stack(parts).amax(0)


def admitted(tensor: Tensor, floor: float, doubly: bool) -> Tensor:
    """Entries below `floor` (of the mean 1/m of a row) become that, then rows are divided by their sums; with `doubly`,
    rows and columns until both sum to 1. Float64. Raises ArgumentError where no such scaling exists."""
    exact = tensor.double()
    _check_mass(exact, "row")
    clipped = exact.clamp_min(0)
    clipped = clipped / clipped.sum(-1, keepdim=True)
    clipped = clipped.clamp_min(floor / tensor.shape[-1])
    if not doubly:
        return rows_normalised(clipped)
    if floor == 0:
        _check_mass(exact.mT, "column")
    tolerance = torch.finfo(tensor.dtype).eps
    scaled = doubly_normalised(clipped, tolerance)
    off = distance(scaled, True)
    if bool((off > tolerance**0.5).any()):
        came = f"row or column sums off by {float(off.max()):.3g} after {LIMIT} sweeps: too many zeros"
        expected = "scalable to a doubly stochastic matrix (a positive `floor` makes it so)"
        raise ArgumentError.of("tensor", expected, came)
    return scaled


def _check_mass(exact: Tensor, what: str) -> None:
    """Rows that are nothing but zeros once negative entries are cut off, or whose entries cancel, have no scaling."""
    size = exact.abs().sum(-1)
    cancels = (exact.sum(-1).abs() <= 8 * torch.finfo(torch.float32).eps * size) & (exact < 0).any(-1)
    lost = (exact <= 0).all(-1) | cancels
    if bool(lost.any()):
        came = f"{int(lost.sum())} of {lost.numel()} {what}s with none, or with negative entries that cancel it: sum 0"
        raise ArgumentError.of("tensor", f"of positive mass in each {what}, to be divided by it", came)
