"""Exponentials of low-rank matrices, one a point: exp(U Vᵀ) = I + U φ₁(VᵀU) Vᵀ, of determinant exp(tr VᵀU)."""

from __future__ import annotations

from torch import Tensor

from p4torch.linalg.small import phi1


def exponential_rows(x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """exp(U Vᵀ) x for each point x `(..., n)` with factors of its own, U and V `(..., n, k)`, which broadcast; and
    log|det| = tr VᵀU `(...)`, or 0 `()` for k = 0. It costs O(nk + k³) a point. It is never singular: exp(-U Vᵀ) is the
    inverse."""
    if not u.shape[-1]:
        return x, x.new_zeros(())
    seen = x.unsqueeze(-2) @ v @ phi1(v.mT @ u).mT
    return x + (seen @ u.mT).squeeze(-2), (u * v).sum((-2, -1)).expand(x.shape[:-1])
