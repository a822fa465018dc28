"""Orthonormal rows and columns: bases, distances from orthonormal, and the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch.linalg.precision import at_least_single, in_double

#: Steps of `orthonormalized`: from the largest error at which Newton-Schulz steps are taken, six reach rounding.
STEPS, NEAR = 10, 0.5

#: Gram matrices of a larger condition number than this have lost the small singular values: SVD instead.
GRAM_CONDITION = 1e12


def orthonormal(factor: Tensor) -> Tensor:
    """An orthonormal basis of the span of a thin factor `(..., n, k)`, column by column, signs as they were. Not finite
    where the factor is not, or is zero."""
    exact = at_least_single(factor)
    q, r = torch.linalg.qr(exact / exact.abs().amax((-2, -1), keepdim=True))
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return (q * sign.unsqueeze(-2)).to(factor.dtype)


def short_rows(matrix: Tensor) -> Tensor:
    """The vectors of the short side as rows `(..., p, n)`, p <= n: the matrix itself if it is wide or square, else its
    transpose. A view."""
    return matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT


def gram_error(rows: Tensor) -> Tensor:
    """E = A Aᴴ - I of rows A `(..., p, n)`."""
    gram = rows @ rows.mH
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return gram


def probe_rows(rows: Tensor, probes: Tensor) -> Tensor:
    """An estimate `(...)` of ‖A Aᴴ - I‖ / √p in O(pn): the root mean square of A (Aᴴ s) - s over probes s = ±1
    `(p, j)`, whose expected square is exactly that."""
    return (rows @ (rows.mH @ probes) - probes).abs().square().mean((-2, -1)).sqrt()


def reorthonormalize_block(rows: Tensor, start: int, count: int) -> None:
    """Make rows I = start, ..., start + count - 1 (modulo p) orthonormal to all rows, to first order, in place.

    E = A_I Aᴴ - I_I;  A_I <- A_I - E W A with W = 1/2 for the rows of I and 1 for the others. O(count · pn).
    """
    index = torch.arange(start, start + count, device=rows.device) % rows.shape[-2]
    block = rows[..., index, :]
    error = block @ rows.mH
    error[..., torch.arange(count, device=rows.device), index] -= 1
    error[..., index] *= 0.5
    rows[..., index, :] = block - error @ rows


def orthonormalized(matrix: Tensor) -> Tensor:
    """The polar factor in double precision: the nearest matrix with orthonormal rows (columns, if it is tall),
    `(..., n, m)`.

    Newton-Schulz steps X <- (3X - X XᴴX) / 2 where the error is below `NEAR`, before that (X Xᴴ)^(-1/2) X, or the SVD.
    """
    rows = short_rows(in_double(matrix))
    for _ in range(STEPS):
        error = gram_error(rows)
        size = float(torch.linalg.matrix_norm(error).max())
        if size <= 4 * rows.shape[-2] * torch.finfo(rows.dtype).eps:
            break
        rows = rows - 0.5 * (error @ rows) if size < NEAR else _polar_rows(rows)
    return rows if matrix.shape[-2] <= matrix.shape[-1] else rows.mT


def _polar_rows(rows: Tensor) -> Tensor:
    scaled = rows / rows.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    values, vectors = torch.linalg.eigh(scaled @ scaled.mH)
    if bool((values[..., 0] * GRAM_CONDITION > values[..., -1]).all()):
        return (vectors / values.sqrt()[..., None, :]) @ (vectors.mH @ scaled)
    left, _, right = torch.linalg.svd(scaled, full_matrices=False)
    return left @ right
