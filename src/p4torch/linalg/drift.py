"""Drift of a tracked inverse: found by probes at every merge, and corrected, some columns at a time or as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg

#: Probe vectors with entries ±1 that look for drift of the inverse at every merge. Each sees all rows.
PROBES = 2

#: An inverse that is off by more than this many times what rounding explains at most is corrected as a whole at once.
#: The more roundings cancel, the less a fresh float32 inverse has of it: at most 0.35 for n = 2, 0.02 for n = 64 and
#: 0.003 for n = 512. With 0.5, random rank-one merges at n = 64 come to it about every 300th time.
DRIFT = 0.5

#: The inverse of a matrix up to this size is corrected as a whole at every merge. Of a larger one, this many columns
#: are, or one part of so many: about a sixth of the cost of a merge. Products are fastest with multiples of 8.
WHOLE, PART, PARTS = 64, 16, 32

#: The golden ratio without its whole part.
GOLDEN = 0.6180339887498949

#: Columns are corrected where the probes' residual is below this: the step multiplies their error by R.
CONVERGENT = 0.01


def probes_of(base: Tensor) -> Tensor:
    """The probe vectors `(n, PROBES)` in float64, the same every time."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 2, (base.shape[-1], PROBES), generator=generator)
    return drawn.to(base.device, torch.float64) * 2 - 1


def rounding_of(base: Tensor) -> float:
    """The residual that rounding explains, in units of |A| |X| 1."""
    return DRIFT * torch.finfo(base.dtype).eps


def part_of(n: int, turn: int) -> slice:
    """The columns whose turn it is. Multiples of the golden ratio visit all parts evenly, also where only every second
    or tenth turn comes to a merge."""
    width = n if n <= WHOLE else max(PART, n // PARTS)
    parts = -(-n // width)
    start = int(turn * GOLDEN % 1 * parts) * width
    return slice(start, min(start + width, n))


def part_residual(image: Tensor, part: slice) -> Tensor:
    """R_J = I_J - A X_J from A X_J, for the columns J; in place. All of R for a small matrix, whose part is all."""
    image.neg_()[..., part, :].diagonal(dim1=-2, dim2=-1).add_(1)
    return image


def correct_columns(inverse: Tensor, part: slice, off: Tensor, where: Tensor) -> None:
    """X_J <- X_J + X R_J in place for the columns J: a Newton-Schulz step, which leaves R R_J. R_J = I_J - A X_J is in
    float64: in float32 its rounding would be worse than the drift."""
    x = linalg.at_least_single(inverse)
    step = linalg.tall_matmul(x, off.to(x.dtype))
    inverse[..., part] += torch.where(where[..., None, None], step, 0).to(inverse.dtype)


def corrected(base: Tensor, inverse: Tensor, order: int, rounding: Tensor, where: Tensor) -> Tensor:
    """A step of the iterative inversion where its residual R is below 1, the exact inverse elsewhere; in the dtype of
    the inverse, which is kept outside the mask. The step is of order 2 if that leaves less than `rounding`: |R|²."""
    exact, x = base.double(), inverse.double()
    residual = linalg.inversion_residual(exact, x)
    norm = torch.linalg.matrix_norm(residual)
    if bool((norm.square() <= rounding)[where].all()):
        short = linalg.at_least_single(inverse)
        improved = short + short @ residual.to(short.dtype)
    else:
        improved = linalg.hyperpower(exact, x, order)
        diverges = ~(norm < 1)
        if bool((diverges & where).any()):
            inverted, failed = linalg.unbatched(torch.linalg.inv_ex, exact)
            improved = torch.where(diverges[..., None, None], inverted, improved)
            where = where & ~(diverges & (failed != 0))
    return torch.where(where[..., None, None], improved.to(inverse.dtype), inverse)
