"""Inverses that are nearly right: their residuals, and steps of the iterative inversion.

Source: Soleymani (2014).
"""

from __future__ import annotations

from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.linalg.precision import eye_like
from p4torch.linalg.woodbury import blockwise, column_major, tall_matmul


def inversion_residual(base: Tensor, inverse: Tensor) -> Tensor:
    """R = I - A X, `(..., n, n)`."""
    return eye_like(base) - base @ inverse


def hyperpower(base: Tensor, inverse: Tensor, order: int) -> Tensor:
    """One step of the hyperpower iteration X <- X (I + R + ... + R^(p-1)), R = I - A X, of order p in {2, 3, 7}.

    The new residual is R^p exactly, so the step converges if and only if the spectral radius of R is below 1.
    Order 2 is Newton-Schulz, 3 is Chebyshev; 7 is factorised as I + (R + R²)(I + R² + R⁴), five products in all
    (Soleymani 2014 compares such schemes).
    """
    residual = inversion_residual(base, inverse)
    if order == 2:
        series = residual
    elif order == 3:
        series = residual + residual @ residual
    elif order == 7:
        square = residual @ residual
        series = (residual + square) @ (eye_like(base) + square + square @ square)
    else:
        raise ArgumentError.of("order", "2, 3 or 7", order)
    return inverse + inverse @ series


def probe_residual(base: Tensor, inverse: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """A look at I - A X in O(n²): (max |A (X p) - p| over probes p `(n, j)`, the unit of |A| |X| 1), `(...)` each, in
    float64.

    Multiplied by the machine epsilon, the second number is the size that rounding alone gives the first: a freshly
    computed inverse stays below one epsilon of it.
    """
    seen, sums = blockwise(inverse, lambda block: (tall_matmul(block, probes), block.abs().sum(-1, keepdim=True)))
    seen = column_major(seen)
    image, units = blockwise(base, lambda block: (block @ seen, block.abs() @ sums))
    return (image - probes).abs().amax((-2, -1)), units.amax((-2, -1))
