"""Rows through matrices with a low-rank perturbation: the training path, one autograd node each.

A frozen A needs no weight gradient, so a training step of a linear layer is two big products instead of three. What is
left besides is thin: products with factors P, Q `(n, k)`, written here so that each is one call in the memory order
that is fast: a thin factor enters a product transposed and contiguous (the other order costs 4 to 10 times as much).

Each function has a reference implementation, which also serves wherever the operations are rewritten or batched:
`torch.compile`, `torch.func`, autocast, stacks of matrices, second derivatives. Rows x are `(..., m, n)`, X is the
inverse of A.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from p4torch import linalg
from p4torch.linalg.reference import exporting, reference_gradients, reference_wanted, transformed

#: Multiply-adds that cost as much as the calls which the factored path makes beyond the dense one (about 40 µs at
#: 30 to 60 billion a second): below, a whole product is cheaper than saving it.
CALLS = 1.5e6

#: So few rows go through a matrix as a thin factor.
FEW = 8


# --- reference implementations --------------------------------------------------------------------------------


def identity_plus_low_rank_reference(z: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """z + (z Q) Pᵀ, the rows z (I + P Qᵀ)ᵀ."""
    return z + (z @ q) @ p.mT


def affine_reference(x: Tensor, base: Tensor, p: Tensor, q: Tensor, bias: Tensor | None) -> Tensor:
    """x Aᵀ + (x Q) Pᵀ + b, the rows x (A + P Qᵀ)ᵀ + b."""
    y = linalg.rows_times(x, base) + (x @ q) @ p.mT
    return y if bias is None else y + bias.to(y.dtype)


def logabsdet_update_reference(inverse: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """log|det K| with K = I + Vᵀ X U, `(...)`: log|det (A + U Vᵀ)| - log|det A|."""
    return linalg.logabsdet(linalg.capacitance(linalg.tall_matmul(inverse, u), v))


def solve_reference(y: Tensor, inverse: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """y (A + U Vᵀ)⁻ᵀ = (y Xᵀ) - (y Xᵀ V) K⁻ᵀ (X U)ᵀ, and log|det K|."""
    plain = linalg.rows_times(y, inverse)
    x_u = linalg.tall_matmul(inverse, u)
    capacitance = linalg.capacitance(x_u, v)
    inverted = linalg.solve(capacitance, linalg.eye_like(capacitance))
    rows = plain - linalg.rows_times(plain @ v, inverted) @ x_u.mT
    return rows, linalg.logabsdet(capacitance)


# --- the fast ones --------------------------------------------------------------------------------------------


def identity_plus_low_rank(z: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """`identity_plus_low_rank_reference`, fast."""
    if not _fused(z, p, q):
        return identity_plus_low_rank_reference(z, p, q)
    if z.dim() != 2:
        return identity_plus_low_rank(_flat(z), p, q).reshape(z.shape)
    return _IdentityPlusLowRank.apply(z, p, q)  # type: ignore[no-untyped-call]


def affine(x: Tensor, base: Tensor, p: Tensor, q: Tensor, bias: Tensor | None = None) -> Tensor:
    """`affine_reference`, fast: through A + P Qᵀ itself where that is cheaper."""
    if dense_is_cheaper(x, base, q.shape[-1]):
        return linalg.rows_times(x, linalg.add_low_rank(base, p, q), bias)
    if not _fused(x, base, p, q):
        return affine_reference(x, base, p, q, bias)
    if x.dim() != 2:
        return affine(_flat(x), base, p, q, bias).reshape(*x.shape[:-1], base.shape[-2])
    return _Affine.apply(x, base, p, q, bias)  # type: ignore[no-untyped-call]


def logabsdet_update(inverse: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """`logabsdet_update_reference`, fast; plain where X has a gradient."""
    if u.numel() <= linalg.SMALL or inverse.requires_grad or not _fused(inverse, u, v):
        return logabsdet_update_reference(inverse, u, v)
    return _LogabsdetUpdate.apply(inverse, u, v)  # type: ignore[no-untyped-call]


def solve(y: Tensor, inverse: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`solve_reference`, fast: y Xᵀ and X U in one product; plain where X has a gradient."""
    if inverse.requires_grad or not _fused(y, inverse, u, v):
        return solve_reference(y, inverse, u, v)
    if y.dim() != 2:
        rows, logabsdet = solve(_flat(y), inverse, u, v)
        return rows.reshape(y.shape), logabsdet
    return _Solve.apply(y, inverse, u, v)  # type: ignore[no-untyped-call]


def dense_is_cheaper(x: Tensor, base: Tensor, rank: int) -> bool:
    """Whether forming A + P Qᵀ, and its gradient, takes less than the factored path: for small matrices, and where the
    rank is not small against them. In multiply-adds, m n n' + 3 n n' k against 3 m (n + n') k and the calls. An
    exported model, for batches of any size, takes the factored path."""
    if base.dim() != 2 or linalg.autocasts(base.device) or exporting():
        return False
    outputs, inputs = base.shape
    count = x.numel() // max(inputs, 1)
    dense = (count + 3 * rank) * inputs * outputs
    return dense <= 3 * count * (inputs + outputs) * rank + CALLS


class _IdentityPlusLowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, p: Tensor, q: Tensor) -> Tensor:
        t = z @ linalg.column_major(q)
        ctx.save_for_backward(z, p, q, t)
        return torch.addmm(z, t, p.mT)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, p, q, t = ctx.saved_tensors
        if reference_wanted(g):
            return reference_gradients(identity_plus_low_rank_reference, ctx.needs_input_grad, (z, p, q), (g,))
        h = g @ linalg.column_major(p)
        return (
            torch.addmm(g, h, q.mT) if ctx.needs_input_grad[0] else None,
            _cross(g, t) if ctx.needs_input_grad[1] else None,
            _cross(z, h) if ctx.needs_input_grad[2] else None,
        )


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor, p: Tensor, q: Tensor, bias: Tensor | None) -> Tensor:
        t = x @ linalg.column_major(q)
        ctx.save_for_backward(x, base, p, q, bias, t)
        return F.linear(x, base, bias).addmm_(t, p.mT)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, base, p, q, bias, t = ctx.saved_tensors
        if reference_wanted(g):
            return reference_gradients(affine_reference, ctx.needs_input_grad, (x, base, p, q, bias), (g,))
        h = g @ linalg.column_major(p)
        return (
            (g @ base).addmm_(h, q.mT) if ctx.needs_input_grad[0] else None,
            g.mT @ x if ctx.needs_input_grad[1] else None,
            _cross(g, t) if ctx.needs_input_grad[2] else None,
            _cross(x, h) if ctx.needs_input_grad[3] else None,
            g.sum(0) if ctx.needs_input_grad[4] else None,
        )


class _LogabsdetUpdate(torch.autograd.Function):
    """∂/∂U = Xᵀ V K⁻ᵀ, ∂/∂V = X U K⁻¹."""

    @staticmethod
    def forward(ctx: Any, inverse: Tensor, u: Tensor, v: Tensor) -> Tensor:
        x_u = linalg.tall_matmul(inverse, u)
        inverted, logabsdet = _invert(v.mT @ x_u)
        ctx.save_for_backward(inverse, u, v, x_u, inverted)
        return logabsdet

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        inverse, u, v, x_u, inverted = ctx.saved_tensors
        if reference_wanted(g):
            return reference_gradients(logabsdet_update_reference, ctx.needs_input_grad, (inverse, u, v), (g,))
        scaled = g * inverted
        return (
            None,
            linalg.tall_matmul(inverse.mT, v) @ scaled.mT if ctx.needs_input_grad[1] else None,
            x_u @ scaled if ctx.needs_input_grad[2] else None,
        )


class _Solve(torch.autograd.Function):
    """x = y R⁻ᵀ with R = A + U Vᵀ. From dx = (dy - x dRᵀ) R⁻ᵀ: ∂/∂y = g R⁻¹ =: g', ∂/∂R = -g'ᵀ x, and log|det|
    adds R⁻ᵀ, with R⁻ᵀ V = Xᵀ V K⁻ᵀ and R⁻¹ U = X U K⁻¹."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, inverse: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        plain, x_u = _stacked(y, u, inverse.mT)
        inverted, logabsdet = _invert(v.mT @ x_u)
        x = torch.addmm(plain, (plain @ linalg.column_major(v)) @ inverted.mT, x_u.mT, alpha=-1)
        ctx.save_for_backward(y, inverse, u, v, x, x_u, inverted)
        ctx.set_materialize_grads(False)
        return x, logabsdet

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_logabsdet: Tensor | None) -> tuple[Tensor | None, ...]:
        y, inverse, u, v, x, x_u, inverted = ctx.saved_tensors
        if reference_wanted(g, g_logabsdet):
            return reference_gradients(solve_reference, ctx.needs_input_grad, (y, inverse, u, v), (g, g_logabsdet))
        if g is None:
            g = torch.zeros_like(x)
        moved = torch.addmm(g, (g @ linalg.column_major(x_u)) @ inverted, v.mT, alpha=-1)
        back, xt_v = _stacked(moved, v, inverse)
        grad_u, grad_v = -_cross(back, x @ linalg.column_major(v)), -_cross(x, back @ linalg.column_major(u))
        if g_logabsdet is not None:
            scaled = g_logabsdet * inverted
            grad_u, grad_v = grad_u + xt_v @ scaled.mT, grad_v + x_u @ scaled
        return back, None, grad_u, grad_v


# --- pieces ---------------------------------------------------------------------------------------------------


def _fused(*tensors: Tensor) -> bool:
    """Whether the hand-written path applies: single matrices of one dtype, and nothing that rewrites operations."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        if tensor.dtype != dtype or tensor.dim() != 2:
            return False
    return not (dtype.is_complex or transformed() or linalg.autocasts(tensors[0].device))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b of many rows, `(m, n)` and `(m, k)`: computed as (bᵀ a)ᵀ."""
    return (b.mT @ a).mT


def _stacked(rows: Tensor, factor: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """rows M and Mᵀ F of F `(n, k)` in one product."""
    both = torch.cat([rows, factor.mT])
    both = linalg.tall_matmul(matrix.mT, both.mT).mT if len(both) <= FEW else both @ matrix
    return both[: len(rows)], both[len(rows) :].mT


def _invert(product: Tensor) -> tuple[Tensor, Tensor]:
    """K⁻¹ and log|det K| of K = I + VᵀXU, from one factorisation. The product is `(k, k)`."""
    if product.numel() == 1:
        capacitance = product + 1
        return capacitance.reciprocal(), capacitance[0, 0].abs().log()
    exact = linalg.at_least_single(product)
    identity = linalg.eye_like(exact)
    factored, pivots, _ = torch.linalg.lu_factor_ex(exact + identity)
    inverted = torch.linalg.lu_solve(factored, pivots, identity)
    return inverted.to(product.dtype), factored.diagonal().abs().log().sum().to(product.dtype)
