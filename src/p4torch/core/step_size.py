"""How far one optimizer step moves a matrix: the factors that make a learning rate mean the same everywhere.

An optimizer that normalizes its steps (Adam) moves every entry of B by about the learning rate η. Entries of unlike
signs add up like a random matrix, whose largest singular value is √n + √m for `(n, m)`. So that R_B(A) moves by

    ‖ΔA‖₂ = STEP · η · ‖A‖          for every n, rank, block and shape,

B is multiplied by a gain g:

    block shapes, B_i `(b, b)`:                           g = STEP / (2 √b)
    low rank, U `(n, k)` and V `(m, k)` ~ N(0, 1):        g = STEP / ((√n + √k) (√m + √k)),   V fixed

and additive perturbations also by the size of A, ‖A‖_F / √min(n, m). A plain matrix `(n, n)` moves by 2 √n η: STEP is
that of n = 16. Steps whose signs agree (a gradient of rank one) move it further, by up to √b/2 or √k.

Source: Vershynin (2018), High-Dimensional Probability, theorem 4.4.5, for the norm of a random matrix; Yang et al.
(2022), Tensor Programs V, for rates that transfer between widths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch._options import check_number

#: ‖ΔA‖₂ / ‖A‖ of one step at the rate 1.
STEP = 8.0


def block_gain(block: int) -> float:
    """g of a block shape `(b, b)`."""
    return STEP / (2 * block**0.5)


def low_rank_gain(rows: int, columns: int, rank: int) -> float:
    """g of low-rank factors `(n, k)` and `(m, k)`."""
    return STEP / ((rows**0.5 + rank**0.5) * (columns**0.5 + rank**0.5))


@torch.no_grad()
def size_of(base: Tensor) -> Tensor:
    """‖A‖_F / √min(n, m) `(...)`, the root mean square of the singular values, in float64; 1 for A = 0."""
    size = torch.linalg.matrix_norm(linalg.in_double(base)) / min(base.shape[-2:]) ** 0.5
    return torch.where(size > 0, size, 1.0)


def check_scale(scale: Any) -> float | None:
    """None, or a positive number as a float. Raises ArgumentError for anything else."""
    return None if scale is None else check_number("scale", scale, 1e-300, "None or a positive number")


def scale_repr(scale: float | None) -> str:
    """The option as the end of a list, for `repr`; nothing for None."""
    return "" if scale is None else f", scale={scale:g}"
