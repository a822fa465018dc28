"""What the terms share: incidence matrices, and vectors of frames that lie in the last axis."""

from __future__ import annotations

import torch
from torch import Tensor

#: Squares of lengths, and of cross products, are not divided by below this: collinear atoms get a gradient of 0.
SMALLEST_SQUARE = 1e-24


def incidence(atoms: int, targets: Tensor, weights: tuple[float, ...] | None = None) -> Tensor:
    """The matrix `(atoms, rows)` that adds what the rows of a term hold onto its atoms.

    `targets` is `(ends, rows)`: entry (targets[e, r], r) is weights[e], or 1.
    """
    matrix = torch.zeros(atoms, targets.shape[1], dtype=torch.float64)
    columns = torch.arange(targets.shape[1])
    for row, weight in zip(targets, weights or (1.0,) * len(targets), strict=True):
        matrix[row, columns] += weight
    return matrix


def scatter(gradient: Tensor, matrix: Tensor, rows: Tensor) -> None:
    """gradient `(atoms, 3, batch)` += matrix `(atoms, rows)` times rows `(rows, 3, batch)`."""
    gradient.flatten(1).addmm_(matrix, rows.flatten(1))


def cross(a: Tensor, b: Tensor) -> Tensor:
    """a × b for `(rows, 3, batch)`."""
    a0, a1, a2 = a.unbind(1)
    b0, b1, b2 = b.unbind(1)
    out = torch.empty_like(a)
    torch.mul(a1, b2, out=out[:, 0]).addcmul_(a2, b1, value=-1)
    torch.mul(a2, b0, out=out[:, 1]).addcmul_(a0, b2, value=-1)
    torch.mul(a0, b1, out=out[:, 2]).addcmul_(a1, b0, value=-1)
    return out


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a · b `(rows, batch)` for `(rows, 3, batch)`."""
    return (a * b).sum(1)
