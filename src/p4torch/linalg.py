"""Linear algebra of low-rank perturbations: the one place that owns the identities.

Notation: A is a base `(..., n, n)`, X its (approximate) inverse, U and V are factors `(..., n, k)`, and
K = I + Vᵀ A⁻¹ U `(..., k, k)` is the capacitance matrix of the perturbed matrix A + U Vᵀ. Vectors are rows:
`x` is `(..., m, n)` and is mapped to x Aᵀ.

Sources: Sherman and Morrison (1950), Woodbury (1950); Krämer, Köhler and Noé (2020), equations 3 and 4;
Soleymani (2014) for the iterative inversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from p4torch.errors import ArgumentError

#: Numbers of a matrix that are in float64 at a time (1 MB): few enough for a cache, enough to be worth a call.
BLOCK = 2**17

#: Numbers in a thin factor from which on its order in memory matters more than a copy.
SMALL = 512


def autocasts(device: torch.device) -> bool:
    """Whether autocast shortens what is computed on a device. The meta device, which computes nothing, has none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast is off: small algebra decides about merges and densities, and stays exact."""
    if autocasts(device):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def eye_like(matrix: Tensor) -> Tensor:
    """The identity `(n, n)` with the size, dtype and device of `matrix` `(..., n, n)`."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def in_double(tensor: Tensor) -> Tensor:
    """The tensor in float64, or in complex128."""
    return tensor.to(double_of(tensor.dtype))


def double_of(dtype: torch.dtype) -> torch.dtype:
    """float64, or complex128 for complex numbers."""
    return torch.complex128 if dtype.is_complex else torch.float64


def by_largest(tensor: Tensor, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
    """The tensor in double precision, divided by its largest absolute entry (along `dims`): what is squared after that
    neither overflows nor vanishes. Zeros stay."""
    exact = in_double(tensor.detach())
    size = exact.abs().amax(dims, keepdim=True)
    return exact / torch.where(size > 0, size, 1.0)


def at_least_single(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if its dtype is shorter: LAPACK knows no half precision."""
    return tensor.float() if torch.finfo(tensor.dtype).bits < 32 else tensor


#: Of stacks of larger matrices, LU factorisations are made one by one on a CPU: on several threads, MKL may hang there
#: (PyTorch's issues 141358 and 142815).
LU_STACK = 64


def one_by_one(function: Callable[..., Any], *matrices: Tensor) -> Any:
    """function(*matrices) for a function by LU (`torch.linalg.inv`, `slogdet`, `solve`, ...) that treats a stack
    `(..., n, n)` matrix by matrix: as one call, or as many where that is safer."""
    first = matrices[0]
    if first.dim() <= 2 or first.shape[-1] <= LU_STACK or not first.is_cpu:
        return function(*matrices)
    batch = torch.broadcast_shapes(*(matrix.shape[:-2] for matrix in matrices))
    flat = [matrix.expand(*batch, *matrix.shape[-2:]).reshape(-1, *matrix.shape[-2:]) for matrix in matrices]
    found = [function(*parts) for parts in zip(*flat, strict=True)]
    if isinstance(found[0], Tensor):
        return torch.stack(found).reshape(*batch, *found[0].shape)
    return tuple(torch.stack(parts).reshape(*batch, *parts[0].shape) for parts in zip(*found, strict=True))


# --- small k x k matrices -----------------------------------------------------------------------------------


def slogdet(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Sign and log|det| of `(..., k, k)`; written out for k = 1, where LAPACK costs more than the rest."""
    if matrix.shape[-1] == 1:
        scalar = matrix[..., 0, 0]
        return scalar.detach().sgn(), scalar.abs().log()
    sign, logabsdet = one_by_one(torch.linalg.slogdet, at_least_single(matrix))
    return sign.detach(), logabsdet


def logabsdet(matrix: Tensor) -> Tensor:
    """log|det| of `(..., k, k)` alone."""
    return matrix.abs().log().squeeze((-2, -1)) if matrix.shape[-1] == 1 else slogdet(matrix)[1]


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix⁻¹ right, `(..., k, k)` and `(..., k, m)`."""
    if matrix.shape[-1] == 1:
        return right / matrix
    if right.dim() == matrix.dim() - 1:  # torch would take a square one for a stack of vectors
        right = right.unsqueeze(0)
    return one_by_one(torch.linalg.solve, at_least_single(matrix), at_least_single(right)).to(right.dtype)


def solve_rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """rows matrixᵀ⁻¹, `(..., n, n)` and rows `(..., m, n)` or a single one `(n,)`."""
    if rows.dim() == 1:
        return solve_rows(matrix, rows.unsqueeze(0)).squeeze(0)
    return solve(matrix, rows.mT).mT


def phi1(matrix: Tensor) -> Tensor:
    """φ₁(M) = M⁻¹ (eᴹ - I), also for singular M: the top right block of exp([[M, I], [0, 0]]). `(..., k, k)`."""
    if matrix.shape[-1] == 1:
        # (e^s - 1) / s; near 0 its series, which keeps two derivatives exact
        small = matrix.abs() < torch.finfo(matrix.dtype).eps ** 0.25
        safe = torch.where(small, torch.ones_like(matrix), matrix)
        series = 1 + matrix / 2 * (1 + matrix / 3 * (1 + matrix / 4 * (1 + matrix / 5)))
        return torch.where(small, series, torch.expm1(safe) / safe)
    k = matrix.shape[-1]
    exact = at_least_single(matrix)
    top = torch.cat([exact, eye_like(exact).expand_as(exact)], dim=-1)
    block = torch.cat([top, torch.zeros_like(top)], dim=-2)
    return torch.linalg.matrix_exp(block)[..., :k, k:].to(matrix.dtype)


# --- the symplectic form --------------------------------------------------------------------------------------


def form(x: Tensor) -> Tensor:
    """J x for columns x `(..., 2n, k)`, J = [[0, I], [-I, 0]]."""
    first, second = x.chunk(2, dim=-2)
    return torch.cat([second, -first], dim=-2)


# --- thin factors -------------------------------------------------------------------------------------------


def columns(factor: Tensor) -> Tensor:
    """The same factor `(..., n, k)`, its columns contiguous in memory: the order in which thin products are fast. Small
    ones stay as they are, since a copy costs more."""
    return factor.mT.contiguous().mT if factor.numel() > SMALL else factor


def thin(matrix: Tensor, factor: Tensor) -> Tensor:
    """M F for a thin F `(..., n, k)`. A transposed M, as it lies in memory, comes second: the other order is up to 25
    times slower."""
    if matrix.stride(-1) != 1 and matrix.shape[-1] > 1:
        return (factor.mT.contiguous() @ matrix.mT).mT
    return matrix @ columns(factor)


# --- A + U Vᵀ ------------------------------------------------------------------------------------------------


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


# --- big matrices, in float64 by blocks of rows ----------------------------------------------------------------


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
    right = columns(right)
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
    y, z = thin(x, right.to(x.dtype)).double(), (left.to(x.dtype) @ x).double()
    a_y, z_a = both_sides(base, y, z)
    residual, w = right - a_y, left - z_a
    y, r = y[..., :k], residual[..., :k]
    z = z + (w.to(x.dtype) @ x).double()
    k_matrix = capacitance(y, v) + z @ r
    return y + thin(x, r.to(x.dtype)).double(), z, k_matrix, residual[..., k:].abs().amax((-2, -1))


# --- iterative inversion -------------------------------------------------------------------------------------


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
    seen, sums = blockwise(inverse, lambda block: (thin(block, probes), block.abs().sum(-1, keepdim=True)))
    seen = columns(seen)
    image, units = blockwise(base, lambda block: (block @ seen, block.abs() @ sums))
    return (image - probes).abs().amax((-2, -1)), units.amax((-2, -1))


def blockwise(matrix: Tensor, look: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What a function makes of the rows of a matrix in float64, block by block: thin tensors `(..., rows, j)`."""
    parts = zip(*(look(block) for _, block in row_blocks(matrix)), strict=True)
    return tuple(torch.cat(part, dim=-2) for part in parts)


# --- orthonormal bases ----------------------------------------------------------------------------------------


def orthonormal(factor: Tensor) -> Tensor:
    """An orthonormal basis of the span of a thin factor `(..., n, k)`, column by column, signs as they were. Not finite
    where the factor is not, or is zero."""
    exact = at_least_single(factor)
    q, r = torch.linalg.qr(exact / exact.abs().amax((-2, -1), keepdim=True))
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return (q * sign.unsqueeze(-2)).to(factor.dtype)


# --- orthonormal rows and columns -----------------------------------------------------------------------------

#: Steps of `orthonormalized`: from the largest error at which Newton-Schulz steps are taken, six reach rounding.
STEPS, NEAR = 10, 0.5

#: Gram matrices of a larger condition number than this have lost the small singular values: SVD instead.
GRAM_CONDITION = 1e12


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
