"""A differentiable upper bound of the spectral norm in a fixed number of products, for every step of a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.linalg.reference import reference_gradients, transformed

#: t, the number of squarings; q = 8194 with it, and the bound at most log(p) / q above the norm: 5e-4 for p = 64. One
#: row, or column, needs none.
SQUARINGS = 12
ORDER = 2 ** (SQUARINGS + 1) + 2

#: Squarings between two divisions by the trace: the largest eigenvalue, at least 1/p then, stays far from underflow.
UNSCALED = 4


def norm_above(matrix: Tensor) -> Tensor:
    """The Schatten norm of order q = 2^(t+1) + 2 of A `(..., n, m)`, as `(...)` in float64. With G = A Aᵀ (or Aᵀ A, the
    smaller one, `(..., p, p)`) and N = 2^t,

        s = (Σ σᵢ^q)^(1/q) = tr(G G^N)^(1/q),   ‖A‖₂ <= s <= p^(1/q) ‖A‖₂,   ∂ log s / ∂A = G^N A / tr(G G^N).

    O(np² + tp³), without a look at values on the host. Rounding is covered as in `norms.norm_bound`.
    """
    exact = linalg.in_double(matrix)
    if transformed():
        return norm_reference(exact)
    return _Norm.apply(exact)  # type: ignore[no-untyped-call]


def norm_above_sum(base: Tensor, u: Tensor, v: Tensor, norm: Tensor) -> Tensor:
    """An upper bound of ‖A + U Vᵀ‖₂ `(...)` from one of ‖A‖₂, in O(nmk), in float64; differentiable in U and V.

    (A + U Vᵀ)(A + U Vᵀ)ᵀ = A Aᵀ + U Nᵀ + N Uᵀ with N = A V + U VᵀV / 2, and U Nᵀ + N Uᵀ <= ½ W Wᵀ with W = a U + N / a,
    for every a; a² = ‖N‖ / ‖U‖, which makes it an equality for k = 1.
    """
    u, v = linalg.in_double(u), linalg.in_double(v)
    n = linalg.in_double(base) @ v + u @ (v.mT @ v) / 2
    tiny = torch.finfo(n.dtype).tiny ** 0.25
    sizes = [torch.linalg.matrix_norm(factor.detach()).clamp_min(tiny) for factor in (u, n)]
    a = (sizes[1] / sizes[0]).sqrt()[..., None, None]
    return (norm.square() + norm_above(a * u + n / a).square() / 2).sqrt()


def norm_reference(matrix: Tensor) -> Tensor:
    """`norm_above`, differentiable as often as wanted."""
    return _powers(matrix)[0]


def _powers(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """s `(...)`, and ∂ log s / ∂G times 2 `(..., p, p)`, the matrix G^N / tr(G G^N)."""
    rows = linalg.short_rows(matrix)
    info = torch.finfo(rows.dtype)
    size = rows.detach().abs().amax((-2, -1)).clamp_min(info.tiny)
    scaled = rows / size[..., None, None]
    gram = scaled @ scaled.mT
    power, logarithm = gram, torch.zeros_like(size)  # G^j = e^logarithm · power
    squarings = SQUARINGS if rows.shape[-2] > 1 else 0
    for turn in range(squarings):
        if turn % UNSCALED == 0:
            trace = _trace(power).clamp_min(info.tiny)
            power, logarithm = power / trace[..., None, None], logarithm + trace.log()
        power, logarithm = power @ power, 2 * logarithm
    last = (gram * power).sum((-2, -1)).clamp_min(info.tiny)
    margin = 1 + 4 * rows.shape[-1] * rows.shape[-2] * info.eps
    norm = margin * size * ((logarithm + last.log()) / (2 ** (squarings + 1) + 2)).exp()
    return norm, power / last[..., None, None] / size[..., None, None] / size[..., None, None]


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


class _Norm(torch.autograd.Function):
    """`norm_reference`, whose gradient costs one product."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        norm, power = _powers(matrix)
        ctx.save_for_backward(matrix, norm, power)
        return norm

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        matrix, norm, power = ctx.saved_tensors
        if torch.is_grad_enabled():
            return reference_gradients(norm_reference, ctx.needs_input_grad, (matrix,), (g,))
        wide = matrix.shape[-2] <= matrix.shape[-1]
        direction = power @ matrix if wide else matrix @ power
        return ((g * norm)[..., None, None] * direction,)
