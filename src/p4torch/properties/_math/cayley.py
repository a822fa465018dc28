"""The Cayley transform of a skew matrix of rank 2k, from its factors, as autograd nodes.

Small layers wait for calls, not for products: each function here is one node with as few operations as possible.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from p4torch import linalg
from p4torch.linalg.reference import reference_gradients, reference_wanted, transformed


def cayley_reference(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """P, Q `(..., n, 2k)` with I + P Qᵀ = (I - S/2)⁻¹ (I + S/2), S = U Vᵀ - V Uᵀ.

    With W = [U, V] and J = [[0, I], [-I, 0]], S = W J Wᵀ, and P = W C, Q = W, C = (-J - WᵀW / 2)⁻¹. C exists always:
    a null vector of C⁻¹ is one of WᵀW, hence of J.
    """
    with linalg.full_precision(u.device):
        w = torch.cat([u, v], -1)
        exact = linalg.at_least_single(w)
        ones = exact.new_ones(u.shape[-1])
        j = torch.diag_embed(ones, u.shape[-1]) - torch.diag_embed(ones, -u.shape[-1])
        return (exact @ torch.linalg.inv(-j - exact.mT @ exact / 2)).to(w.dtype), w


def cayley_affine_reference(x: Tensor, base: Tensor, u: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """x (Q A)ᵀ + b with Q the Cayley transform, through Q A itself."""
    p, q = cayley_reference(u, v)
    return linalg.rows_times(x, linalg.add_low_rank(base, p, base.mT @ q), bias)


# --- the fast ones --------------------------------------------------------------------------------------------


def cayley(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`cayley_reference`, fast."""
    return _Cayley.apply(u, v) if _fusible(u) else cayley_reference(u, v)  # type: ignore[no-untyped-call]


def cayley_affine(x: Tensor, base: Tensor, u: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`cayley_affine_reference` for a single small matrix, fast."""
    if not _fusible(u) or x.dtype != u.dtype:
        return cayley_affine_reference(x, base, u, v, bias)
    if x.dim() != 2:
        return cayley_affine(x.reshape(-1, x.shape[-1]), base, u, v, bias).reshape(*x.shape[:-1], base.shape[-2])
    return _CayleyAffine.apply(x, base, u, v, bias)  # type: ignore[no-untyped-call]


def _fusible(u: Tensor) -> bool:
    """Whether the hand-written path applies."""
    if u.dtype not in (torch.float32, torch.float64):
        return False
    return not (transformed() or linalg.autocasts(u.device))


def _inner_inverse(w: Tensor) -> Tensor:
    """C = (-J - WᵀW / 2)⁻¹ `(..., 2k, 2k)`; in closed form for a single vector pair, where LAPACK costs more."""
    gram = w.mT @ w
    if gram.numel() == 4 and gram.device.type == "cpu":
        (a, c), (_, b) = gram.tolist()
        det = 1 + (a * b - c * c) / 4
        entries = [-b / 2 / det, (1 + c / 2) / det, (c / 2 - 1) / det, -a / 2 / det]
        return torch.tensor(entries, dtype=gram.dtype).view(gram.shape)
    k = w.shape[-1] // 2
    gram.mul_(-0.5)
    gram.diagonal(k, -2, -1).sub_(1)
    gram.diagonal(-k, -2, -1).add_(1)
    return torch.linalg.inv_ex(gram)[0]


class _Cayley(torch.autograd.Function):
    """From dC = C sym(WᵀdW) C, with T = ∂P Cᵀ: ∂W = ∂Q + T + W sym(PᵀT)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        w = torch.cat([u, v], -1)
        c = _inner_inverse(w)
        p = w @ c
        ctx.save_for_backward(u, v, w, c, p)
        return p, w

    @staticmethod
    def backward(ctx: Any, g_p: Tensor, g_w: Tensor) -> tuple[Tensor | None, ...]:
        u, v, w, c, p = ctx.saved_tensors
        if reference_wanted(g_p, g_w):
            return reference_gradients(cayley_reference, ctx.needs_input_grad, (u, v), (g_p, g_w))
        t = g_p @ c.mT
        x = p.mT @ t
        g = (g_w + t).add_(w @ (x + x.mT), alpha=0.5)
        return g[..., : u.shape[-1]], g[..., u.shape[-1] :]


class _CayleyAffine(torch.autograd.Function):
    """R = A + W Z with Z = C WᵀA. From H = ∂R = gᵀx and D = Cᵀ WᵀH: ∂W = H Zᵀ + A Dᵀ + W sym(D Zᵀ), ∂A = H + W D.
    Thin matrices are kept as rows, Wᵀ `(2k, n)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor, u: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        rows = torch.cat([u.mT, v.mT])
        c = _inner_inverse(rows.mT)
        z = c @ (rows @ base)
        weight = torch.addmm(base, rows.mT, z)
        ctx.save_for_backward(x, base, u, v, bias, rows, c, z, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, base, u, v, bias, rows, c, z, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if reference_wanted(g):
            return reference_gradients(cayley_affine_reference, needs, (x, base, u, v, bias), (g,))
        h = g.mT @ x
        d = c.mT @ (rows @ h)
        m = d @ z.mT
        grad_rows = (z @ h.mT).addmm_(d, base.mT).addmm_(m + m.mT, rows, alpha=0.5)
        k = u.shape[1]
        return (
            g @ weight if needs[0] else None,
            torch.addmm(h, rows.mT, d) if needs[1] else None,
            grad_rows[:k].mT,
            grad_rows[k:].mT,
            g.sum(0) if needs[4] else None,
        )
