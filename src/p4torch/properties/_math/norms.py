"""Spectral norms: certified upper bounds, and matrices of smaller norm."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg

#: `norm_bound` is at most this far, relatively, above the norm, if it is not asked about a limit.
SLACK = 1e-6


def norm_bound(matrix: Tensor, limit: Tensor | None = None) -> Tensor:
    """A certified upper bound of ‖A‖₂ `(...)`, in float64, by Gram iteration: with G = AᵀA and any m,

        ‖A‖₂ = ‖G^(2^m)‖₂^(1/2^(m+1)) <= ‖G^(2^m)‖_F^(1/2^(m+1)),

    too large by at most p^(1/2^(m+2)). O(np² + mp³), p the short side. From below, ‖G'‖₂ >= ‖G'‖_F² / tr G' for
    every G' = G^(2^m). It squares until the two are within `SLACK`, or on the same side of `limit` `(...)`, if it is
    only asked on which side of that the norm is. Rounding of a product of p x p matrices is at most pε ‖G‖_F² <=
    p²ε ‖G‖₂², and the roots make a geometric series of these: 4 npε covers all.

    Source: Delattre, Barthélemy, Araujo and Allauzen (2023), efficient bound of Lipschitz constants by Gram iteration.
    """
    rows = linalg.short_rows(linalg.in_double(matrix))
    info = torch.finfo(rows.dtype)
    size = rows.abs().amax((-2, -1), keepdim=True).clamp_min(info.tiny)
    gram, logarithm, root = (rows / size) @ (rows / size).mH, 2 * size[..., 0, 0].log(), 0.5
    margin = 1 + 4 * rows.shape[-1] * rows.shape[-2] * info.eps
    bound, done = torch.full_like(logarithm, torch.inf), torch.zeros_like(logarithm, dtype=torch.bool)
    while True:
        norm = torch.linalg.matrix_norm(gram).clamp_min(info.tiny)
        gram, logarithm = gram / norm[..., None, None], logarithm + norm.log()
        bound = torch.where(done, bound, margin * (root * logarithm).exp())
        excess = root * gram.diagonal(dim1=-2, dim2=-1).sum(-1).log()
        done = done | ~(excess > SLACK)
        if limit is not None:
            done = done | (bound <= limit) | (bound * (-excess).exp() > margin**2 * limit)
        if bool(done.all()):
            return bound
        gram, logarithm, root = gram @ gram, 2 * logarithm, root / 2


def norm_of_low_rank(u: Tensor, v: Tensor) -> Tensor:
    """‖U Vᵀ‖₂ `(...)` in O(nk²), from the triangular factors of U and V."""
    left, right = (torch.linalg.qr(factor, mode="r")[1] for factor in (linalg.in_double(u), linalg.in_double(v)))
    return torch.linalg.matrix_norm(left @ right.mT, ord=2)


def clip_norm(matrix: Tensor, limit: Tensor) -> Tensor:
    """A with its singular values above `limit` `(...)` cut to it: the nearest matrix of such norm. O(np²), float64."""
    rows = linalg.short_rows(linalg.in_double(matrix))
    unit = linalg.scaled_by_largest(rows)
    values, vectors = torch.linalg.eigh(unit @ unit.mT)
    values = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt() * rows.abs().amax((-2, -1))[..., None]
    cut = (1 - limit[..., None] / values).clamp_min(0)
    rows = rows - (vectors * cut[..., None, :]) @ (vectors.mT @ rows)
    return rows if matrix.shape[-2] <= matrix.shape[-1] else rows.mT


def rounding_share(tensor: Tensor) -> float:
    """By which share of itself rounding each entry may change ‖A‖₂: ‖δ‖₂ <= ‖δ‖_F <= ε/2 ‖A‖_F <= ε/2 √p ‖A‖₂. Twice
    that."""
    return torch.finfo(tensor.dtype).eps * min(tensor.shape[-2:]) ** 0.5
