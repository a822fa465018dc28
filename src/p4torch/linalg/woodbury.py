"""Low-rank perturbations A + U Vᵀ: products with thin factors, and Woodbury identities, the one place that owns them.

Notation: A is a base `(..., n, n)`, X its (approximate) inverse, U and V are factors `(..., n, k)`, and
K = I + Vᵀ A⁻¹ U `(..., k, k)` is the capacitance matrix of the perturbed matrix A + U Vᵀ. Vectors are rows:
`x` is `(..., m, n)` and is mapped to x Aᵀ.

Sources: Sherman and Morrison (1950), Woodbury (1950); Krämer, Köhler and Noé (2020), equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from p4torch.linalg.precision import at_least_single, autocasts, eye_like

#: Numbers of a matrix that are in float64 at a time (1 MB): few enough for a cache, enough to be worth a call.
BLOCK = 2**17

#: Numbers in a thin factor from which on its order in memory matters more than a copy.
SMALL = 512


def column_major(factor: Tensor) -> Tensor:
    """The same factor `(..., n, k)`, its columns contiguous in memory: the order in which thin products are fast. Small
    ones stay as they are, since a copy costs more."""
    return factor.mT.contiguous().mT if factor.numel() > SMALL else factor


def tall_matmul(matrix: Tensor, factor: Tensor) -> Tensor:
    """M F for a thin F `(..., n, k)`. A transposed M, as it lies in memory, comes second: the other order is up to 25
    times slower."""
    if matrix.stride(-1) != 1 and matrix.shape[-1] > 1:
        return (factor.mT.contiguous() @ matrix.mT).mT
    return matrix @ column_major(factor)


def rows_times(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Mᵀ + b for rows x `(..., m, n)`; any leading shape of x where M is a single matrix."""
    if matrix.dim() == 2:
        return F.linear(x, matrix, bias)
    y = torch.matmul(x, matrix.mT)
    return y if bias is None else y + bias


def low_rank(u: Tensor, v: Tensor) -> Tensor:
    """U Vᵀ `(..., n, n)`; an outer product for k = 1."""
    return u * v.mT if u.shape[-1] == 1 else u @ v.mT


def add_low_rank(matrix: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """M + P Qᵀ; never in the short dtype of autocast."""
    if matrix.dim() == 2 and not autocasts(matrix.device):
        return torch.addmm(matrix, p, q.mT)
    return matrix + low_rank(p, q)


def capacitance(x_u: Tensor, v: Tensor) -> Tensor:
    """K = I + Vᵀ (A⁻¹U)."""
    if v.dim() == 2 and x_u.dim() == 2:
        return torch.addmm(torch.eye(v.shape[-1], dtype=v.dtype, device=v.device), v.mT, x_u)
    product = v.mT @ x_u
    return product + eye_like(product)


def row_blocks(matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a stack `(..., m, n)` in blocks of about `BLOCK` numbers: which rows, and them in float64. The blocks
    share their memory: fresh memory costs more than what is computed in it."""
    rows = matrix.shape[-2]
    height = min(rows, max(1, BLOCK * rows // matrix.numel()))
    buffer = matrix.new_empty(*matrix.shape[:-2], height, matrix.shape[-1], dtype=torch.float64)
    for start in range(0, rows, height):
        block = slice(start, min(start + height, rows))
        yield block, buffer[..., : block.stop - start, :].copy_(matrix[..., block, :])


def both_sides(matrix: Tensor, right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """M F and G M for thin F `(..., n, k)` and G `(..., j, n)`, in one pass over M, in float64."""
    right = column_major(right)
    after, before = torch.empty_like(right), torch.zeros_like(left)
    for rows, block in row_blocks(matrix):
        after[..., rows, :] = block @ right
        before += left[..., rows] @ block
    return after, before


def rounded_sum(matrix: Tensor, p: Tensor, q: Tensor, out: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """out <- M + P Qᵀ, computed in float64 and rounded to the dtype of `out`. By blocks: which rows, them as they are
    stored, and as they were before rounding (float64, the caller's to overwrite)."""
    q, buffer = q.mT, None
    for rows, exact in row_blocks(matrix):
        if exact.dim() == 2:
            exact.addmm_(p[rows], q)
        else:
            exact += p[..., rows, :] @ q
        out[..., rows, :] = exact
        buffer = torch.empty_like(exact) if buffer is None else buffer[..., : exact.shape[-2], :]
        yield rows, buffer.copy_(out[..., rows, :]), exact


def refined_solves(
    base: Tensor, inverse: Tensor, u: Tensor, v: Tensor, probes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A⁻¹U `(..., n, k)`, VᵀA⁻¹ `(..., k, n)` and K = I + VᵀA⁻¹U from an approximate inverse X, in float64, and the
    largest entry of (I - A X) P over probes P `(n, j)`, `(...)`.

    Y = X U and Z = VᵀX give the residuals r = U - A Y and w = Vᵀ - Z A; refined, they are Y + X r and Z + w X. Since
    VᵀA⁻¹U = VᵀY + VᵀA⁻¹r, the capacitance is I + VᵀY + (Z + w X) r. With an X that is off by R = I - A X, the solves
    are off by R² and K by R³. Only the residuals need float64; products with X are in its dtype.
    """
    k, x = u.shape[-1], at_least_single(inverse)
    right, left = torch.cat([u, probes.expand(*u.shape[:-1], -1)], dim=-1), v.mT
    y, z = tall_matmul(x, right.to(x.dtype)).double(), (left.to(x.dtype) @ x).double()
    a_y, z_a = both_sides(base, y, z)
    residual, w = right - a_y, left - z_a
    y, r = y[..., :k], residual[..., :k]
    z = z + (w.to(x.dtype) @ x).double()
    k_matrix = capacitance(y, v) + z @ r
    return y + tall_matmul(x, r.to(x.dtype)).double(), z, k_matrix, residual[..., k:].abs().amax((-2, -1))


def blockwise(matrix: Tensor, look: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What a function makes of the rows of a matrix in float64, block by block: thin tensors `(..., rows, j)`."""
    parts = zip(*(look(block) for _, block in row_blocks(matrix)), strict=True)
    return tuple(torch.cat(part, dim=-2) for part in parts)
