"""Matrices of low rank as products of two tracked factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p4torch import linalg

#: The shorter of two paired columns takes up singular values below this share of the largest: the longer one keeps its
#: length, so that a pair with singular value 0 can move.
BALANCE_CUTOFF = 0.1


class Factors(nn.Module):
    """L `(..., n, r)` and R `(..., m, r)` with A = L Rᵀ. Frozen Parameters, not buffers: distributed wrappers
    re-broadcast buffers at every forward pass."""

    def __init__(self, base: Tensor, rank: int) -> None:
        super().__init__()
        batch, (n, m) = base.shape[:-2], base.shape[-2:]
        self.left = nn.Parameter(base.new_zeros(*batch, n, rank), requires_grad=False)
        self.right = nn.Parameter(base.new_zeros(*batch, m, rank), requires_grad=False)

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        """The best factors of a base, from its SVD in float64; of those, the nearest to the present ones."""
        rank, previous = self.left.shape[-1], (self.left.double(), self.right.double())
        left, values, right = torch.linalg.svd(base.double(), full_matrices=False)
        factors = split_singular_values(left[..., :rank], values[..., :rank], right[..., :rank, :].mT)
        for factor, value in zip((self.left, self.right), nearest_factors(factors, previous), strict=True):
            factor.copy_(value)


def split_singular_values(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """L, R with L Rᵀ = left · diag(values) · rightᵀ: each singular value σ is shared out to its two columns, √σ each,
    or less to L where σ is small (see `BALANCE_CUTOFF`)."""
    largest = values[..., :1]
    length = torch.maximum(values, BALANCE_CUTOFF * torch.where(largest > 0, largest, 1.0)).sqrt()[..., None, :]
    return left * (values[..., None, :] / length), right * length


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same product, balanced, and otherwise as close to these as they can be: what an optimizer
    remembers of their entries stays true. O((n + m)r²), from QR and an SVD of r x r."""
    (q_left, t_left), (q_right, t_right) = torch.linalg.qr(left), torch.linalg.qr(right)
    u, values, v = torch.linalg.svd(t_left @ t_right.mT)
    return nearest_factors(split_singular_values(q_left @ u, values, q_right @ v.mT), (left, right))


def nearest_factors(factors: tuple[Tensor, Tensor], previous: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """L Q, R Q with the orthogonal Q that brings them closest to the previous ones: the polar factor of LᵀL' + RᵀR'."""
    rotation = linalg.orthonormalized(factors[0].mT @ previous[0] + factors[1].mT @ previous[1])
    return factors[0] @ rotation, factors[1] @ rotation
