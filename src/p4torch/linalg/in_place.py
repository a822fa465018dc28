"""Merges that write in place: for large, well-conditioned matrices in float32 all is decided from thin products, before
a single entry of A or A⁻¹ is touched, and then two low-rank updates are added. No candidate is built or copied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch import linalg

#: Machine epsilons of max|A p| max|X p|, p = ±1, up to which the residual of X is that of rounding and of merges since
#: the columns' last correction. The unit stands for row norms of A and X, which it overestimates by about 3 each: a
#: fresh inverse comes to 0.05, random merges at n = 512 to 0.5.
DRIFT = 2.0

#: Largest ε max|A p| max|X p|, before and after: up to here rounding A moves log|det A| by less than some 3e-7 a merge,
#: at random, which need not be looked at.
WELL_CONDITIONED = 1e-5


@dataclass(frozen=True)
class InPlaceUpdate:
    """A <- A + U Vᵀ, X <- X - Y W and X_J <- X_J + S, decided but not made. `change` and `sign` are of det K,
    `residual` is max|A' X' p - p|, `(...)` each, in float64."""

    u: Tensor
    v: Tensor
    y: Tensor
    w: Tensor
    part: slice
    correction: Tensor
    change: Tensor
    sign: Tensor
    residual: Tensor

    @torch.no_grad()
    def write(self, base: Tensor, inverse: Tensor, where: Tensor) -> None:
        """Make it, for the matrices where it was accepted."""
        mask = where[..., None, None]
        _add(base, self.u * mask, self.v.mT)
        _add(inverse, -self.y * mask, self.w)
        inverse[..., self.part] += (self.correction * mask).to(inverse.dtype)


def in_place_update(
    base: Tensor, inverse: Tensor, u: Tensor, v: Tensor, probes: Tensor, part: slice
) -> InPlaceUpdate | None:
    """The merge of A + U Vᵀ with X = A⁻¹ as tracked; None where it takes a closer look: the capacitance is singular, X
    has drifted, or A is badly conditioned.

    One pass over A in float64 tells A [Y, X P, P, X_J] and Z A, with Y = X U, Z = VᵀX; the residuals refine Y and Z, as
    in `linalg.refined_solves`. With W = K⁻¹ Z, the new inverse is X' = X - Y W, and A' = A + U Vᵀ gives

        A' X' p = A X p - U W p + U Vᵀ X' p,        A' X'_J = A X_J + U (Vᵀ X_J - Z_J)

    of which the first is the probe and the second corrects the columns J, X'_J <- X'_J + X' (I_J - A' X'_J).
    """
    k, eps = u.shape[-1], torch.finfo(base.dtype).eps
    p = probes.expand(*u.shape[:-1], -1)
    x_j, short = inverse[..., part], inverse.dtype
    y = linalg.tall_matmul(inverse, u.to(short)).double()
    (x_p,) = linalg.blockwise(inverse, lambda block: (linalg.tall_matmul(block, p),))  # in float32 it would be noise
    z = (v.mT.to(short) @ inverse).double()
    images, z_a = linalg.both_sides(base, torch.cat([y, x_p, p, x_j.double()], -1), z)
    a_y, a_x_p, a_p, a_x_j = images.split([k, p.shape[-1], p.shape[-1], x_j.shape[-1]], -1)

    r, more_z = u - a_y, ((v.mT - z_a).to(short) @ inverse).double()
    capacitance = linalg.capacitance(y, v) + (z + more_z) @ r
    y, z = y + linalg.tall_matmul(inverse, r.to(short)).double(), z + more_z
    sign, change = linalg.slogdet(capacitance)
    unit = a_p.abs().amax((-2, -1)) * x_p.abs().amax((-2, -1))
    before = (a_x_p - p).abs().amax((-2, -1))
    if not bool((change.isfinite() & (before <= DRIFT * eps * unit)).all()):
        return None
    w = linalg.solve(capacitance, z)
    after = x_p - y @ (w @ p)
    unit_after = (a_p + u @ (v.mT @ p)).abs().amax((-2, -1)) * after.abs().amax((-2, -1))
    if not bool((eps * torch.maximum(unit, unit_after) <= WELL_CONDITIONED).all()):
        return None
    residual = (a_x_p - u @ (w @ p) + u @ (v.mT @ after) - p).abs().amax((-2, -1))
    error = -(a_x_j + u @ (v.mT @ x_j.double() - z[..., part]))
    error[..., part, :].diagonal(dim1=-2, dim2=-1).add_(1)
    correction = linalg.tall_matmul(inverse, error.to(short)) - (y @ (w @ error)).to(short)
    return InPlaceUpdate(u, v, y, w, part, correction, change, sign, residual)


def _add(matrix: Tensor, p: Tensor, q: Tensor) -> None:
    """M <- M + P Q in place, for thin P `(..., n, k)` and Q `(..., k, n)`."""
    p, q = p.to(matrix.dtype), q.to(matrix.dtype)
    if matrix.dim() == 2:
        matrix.addmm_(p, q)
    else:
        matrix += p @ q
