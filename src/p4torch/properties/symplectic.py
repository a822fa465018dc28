"""Symplectic matrices: linear canonical maps of phase space, by Cayley transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.blocks import Blocks
from p4torch.core.directions import LinearOperator, outer_operator
from p4torch.core.low_rank import LowRank, Side
from p4torch.core.shaped import Shaped
from p4torch.core.transaction import Proposal
from p4torch.errors import ArgumentError
from p4torch.linalg import fused_linear, symplectic_form
from p4torch.linalg.matrix_groups import SYMPLECTIC
from p4torch.properties._math.phase_space import (
    column_error,
    drifted,
    nearest_orthogonal_symplectic,
    resymplectified,
    veto_nonsymplectic,
    warn_of_large_entries,
)
from p4torch.properties._math.shapes import check_real_matrix, check_square

#: Largest eigenvalue that S may have: the Cayley transform has a pole at 2.
MAX_EIGENVALUE = 1.0


class Symplectic(Shaped):
    """S = Sp(2n) = {M `(..., 2n, 2n)` : MᵀJM = J}, J = [[0, I], [-I, 0]]. A symplectic Q acts:

        R_B(M) = M Q  (low rank: Q M),   Q = (I - X/2)⁻¹ (I + X/2),   X Hamiltonian (JX is symmetric)
        blocks:    X = P blockdiag(g J_b (B_i + B_iᵀ) / 2) Pᵀ, blocks of b/2 pairs of coordinates (j, j + n)
        low rank:  X = g (U Vᵀ + V Uᵀ) J,   U, V `(..., 2n, k)`

    Q is symplectic for every B where it exists. With k, Q = I + P Fᵀ with W = [g U, V],

        P = W C,   F = -J W,   C = (K - WᵀJW / 2)⁻¹ `(2k, 2k)`,   K = [[0, I], [I, 0]].

    It has poles, where X has the eigenvalue 2; after each step B, or U, is shortened so that no eigenvalue exceeds 1 (a
    `MergeScheduler` sees to it). B₀ is B = 0, in m b(b+1)/2 dimensions, or U = 0 and V ~ N(0, 1), where dQ has at
    least 2n. Sp(2n) is connected: all of it is within reach.

    Nothing is tracked: M⁻¹ = -JMᵀJ, det M = 1. A step costs O(n²k), or O(n²b), a merge as much and a correction, O(n³),
    where a probe of E = MᵀJM - J with random signs finds more than rounding (2n <= 64: always): M <- M (I + JE/2), or
    where ‖M‖ is so large that this would move M by more than rounding, the least move that makes up for E, by an SVD.
    Rounding alone makes E_ij as large as ε |m_i| |m_j|, with the columns m_i of M: the defect is relative to that.

    Args:
        base: `(..., 2n, 2n)`. One that is not symplectic is projected: from near by that correction, else to the
            nearest orthogonal symplectic matrix.
        rank, block, side, scale, directions, train_directions: see `p4torch.core.shaped.Shaped`; b is even.

    Raises:
        ArgumentError: for a base that is not real, finite and square of even size; or that cannot be projected.

    Source: Hairer, Lubich and Wanner (2006), Geometric Numerical Integration, section VI, for symplectic matrices and
    their Cayley transforms.
    """

    def __init__(self, base: Tensor, rank: int | None = None, **options: Any) -> None:
        check_real_matrix(base)
        check_square(base, "a symplectic matrix")
        if base.shape[-1] % 2:
            raise ArgumentError.of("base", "of even size, (..., 2n, 2n)", tuple(base.shape))
        super().__init__(base, rank, **options)

    def factors_act(self, base: Tensor) -> Side:
        return "left"

    # --- what follows from R_B ----------------------------------------------------------------------------------------

    def base_inverse(self, base: Tensor) -> Tensor:
        """-JMᵀJ."""
        return symplectic_form(symplectic_form(base).mT)

    def inverse(self, base: Tensor) -> Tensor:
        """-JRᵀJ."""
        with linalg.full_precision(base.device):
            matrix = self.forward(base)
            return self.base_inverse(matrix)

    def logabsdet(self, base: Tensor) -> Tensor:
        """0, whatever B is."""
        return base.new_zeros(base.shape[:-2])

    def sign(self, base: Tensor) -> Tensor:
        return torch.ones_like(self.skips, dtype=base.dtype)

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """The largest column of MᵀJM - J, each entry by the lengths of the two columns of M that it comes from."""
        return column_error(tensor)

    def project(self, tensor: Tensor) -> Tensor:
        result = resymplectified(tensor)
        far = ~(self.defect(result) <= torch.finfo(tensor.dtype).eps ** 0.5)
        if bool(far.any()):
            result = torch.where(far[..., None, None], nearest_orthogonal_symplectic(tensor), result)
        return result.to(tensor.dtype)

    def right_inverse(self, tensor: Tensor) -> Tensor:
        base: Tensor = super().right_inverse(tensor)
        warn_of_large_entries(base, self.tensor_name)
        return base

    # --- merges -------------------------------------------------------------------------------------------------------

    def propose(self, base: Tensor) -> Proposal:
        candidate = _corrected(self._candidate(base), self.merge_index)
        return Proposal(candidate, vetoes=[veto_nonsymplectic(candidate)])

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        """All of M, where the probe finds more than rounding."""
        base.copy_(_corrected(base, self.merge_index))


class BlockSymplectic(Symplectic, Blocks):
    """Blocks in sp(b)."""

    algebra = SYMPLECTIC


class LowRankSymplectic(Symplectic, LowRank):
    """Hamiltonian matrices of rank 2k."""

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        with linalg.full_precision(u.device):
            w = torch.cat([u, v], -1)
            exact, k = linalg.at_least_single(w), u.shape[-1]
            j_w, ones = symplectic_form(exact), exact.new_ones(k)
            capacitance = torch.diag_embed(ones, k) + torch.diag_embed(ones, -k) - exact.mT @ j_w / 2
            return (exact @ torch.linalg.inv_ex(capacitance)[0]).to(w.dtype), -j_w.to(w.dtype)

    @torch.no_grad()
    def after_step(self) -> None:
        """Shorten U where X may have an eigenvalue above `MAX_EIGENVALUE`: at most ‖UᵀJV‖ + (‖UᵀJU‖ ‖VᵀJV‖)^½."""
        u, v = linalg.at_least_single(self.scaled_u), linalg.at_least_single(self.v)
        mixed, of_u, of_v = (torch.linalg.matrix_norm(a.mT @ symplectic_form(b)) for a, b in ((u, v), (u, u), (v, v)))
        self.clip_factor(mixed + (of_u * of_v).sqrt(), MAX_EIGENVALUE)

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        """y R⁻ᵀ = y JᵀRJ."""
        with linalg.full_precision(base.device):
            p, q = self.factors(self.scaled_u, self.v)
            rows = _rows_times_form(-y.to(base.dtype))
            if fused_linear.dense_is_cheaper(rows, base, q.shape[-1]):
                x = linalg.rows_times(rows, self.apply_factors(base, p, q).mT)
            else:
                x = linalg.rows_times(fused_linear.identity_plus_low_rank(rows, q, p), base.mT)
        if self.sketch is not None:  # ∂L/∂R = (y Jᵀ)ᵀ g
            self.sketch.record(x, lambda g: self.pull_back(base, outer_operator(rows.detach(), g, base.dim() > 2)))
        return _rows_times_form(x)

    def pull_back(self, base: Tensor, gradient: LinearOperator) -> LinearOperator:
        """∂L/∂U = (H + Hᵀ) V near B₀, with H = G Mᵀ Jᵀ."""
        g = super().pull_back(base, gradient)
        return LinearOperator(
            lambda s: g.times(-symplectic_form(s)), lambda t: symplectic_form(g.transposed(t))
        ).symmetric()


Symplectic.shapes = (BlockSymplectic, LowRankSymplectic)


def _corrected(matrix: Tensor, seed: int) -> Tensor:
    off = drifted(matrix, seed) & matrix.isfinite().flatten(-2).all(-1)
    if not bool(off.any()):
        return matrix
    return torch.where(off[..., None, None], resymplectified(matrix).to(matrix.dtype), matrix)


def _rows_times_form(x: Tensor) -> Tensor:
    """x J for rows x `(..., 2n)`."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
