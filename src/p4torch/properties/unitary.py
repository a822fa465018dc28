"""Unitary matrices, and complex ones with orthonormal columns or rows, by Cayley transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.blocks import Blocks
from p4torch.core.directions import Apply
from p4torch.core.low_rank import LowRank
from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError
from p4torch.linalg import fused_linear
from p4torch.linalg.matrix_groups import UNITARY
from p4torch.properties._math.orthonormal import Orthonormal
from p4torch.properties._math.shapes import check_complex_matrix, check_square


class Unitary(Orthonormal):
    """S = {A complex : AᴴA = I}: U(n) for square A `(..., n, n)`, orthonormal columns for tall ones `(..., n, p)`,
    orthonormal rows for wide ones `(..., p, n)`. n is the long side, on which a unitary Q acts:

        R_B(A) = A Q  (tall: Q A),   Q = (I - X/2)⁻¹ (I + X/2),   X skew-Hermitian
        blocks:    X = P blockdiag(g (B_i - B_iᴴ) / 2) Pᵀ
        low rank:  X = g (U Vᴴ - V Uᴴ),   U, V `(..., n, k)` complex

    Q is unitary for every B. With W = [g U, V] and J = [[0, I], [-I, 0]], the low-rank X = W J Wᴴ and

        Q = I + W C Wᴴ,   C = (-J - WᴴW / 2)⁻¹ `(2k, 2k)`:

    nothing n x n is formed for n x p. B₀ is B = 0, in m b² real dimensions, or U = 0 and V ~ N(0, 1), complex, where
    dQ = g (dU Vᴴ - V dUᴴ) has 2nk - k². All of U(n) is within reach, it is connected.

    Nothing is tracked: A⁻¹ = Aᴴ and log|det A| = 0; `sign` is the phase det A, computed. Costs and corrections are as
    for `p4torch.Orthogonal`.

    Args:
        base: `(..., n, p)` or `(..., p, n)`, complex. One that is not orthonormal is projected: its polar factor.
        rank, block, side, scale, train_directions: see `p4torch.core.shaped.Shaped`.
        directions: "random", always; a schedule with gradient directions leaves them so.

    Raises:
        ArgumentError: for a base that is not a complex, finite matrix; for options out of range.

    Source: Wen and Yin (2013), a feasible method for optimization with orthogonality constraints, for the transform;
    Helfrich, Willmott and Ye (2018) for its use in networks.
    """

    def __init__(self, base: Tensor, rank: int | None = None, **options: Any) -> None:
        check_complex_matrix(base, "Orthogonal is the real one")
        if options.get("directions", "random") != "random":
            raise ArgumentError.of("directions", "random, for complex matrices", repr(options["directions"]))
        super().__init__(base, rank, **options)


class BlockUnitary(Unitary, Blocks):
    """Blocks in u(b)."""

    algebra = UNITARY

    def sign(self, base: Tensor) -> Tensor:
        return Perturbation.sign(self, base)


class LowRankUnitary(Unitary, LowRank):
    """Skew-Hermitian matrices of rank 2k."""

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """W C and the conjugate of W: the engine multiplies by Qᵀ."""
        with linalg.full_precision(u.device):
            w = torch.cat([u, v], -1)
            ones = w.new_ones(u.shape[-1])
            j = torch.diag_embed(ones, u.shape[-1]) - torch.diag_embed(ones, -u.shape[-1])
            return w @ torch.linalg.inv_ex(-j - w.mH @ w / 2)[0], w.conj_physical()

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        """y R_B(A)⁻ᵀ, the conjugate of ȳ R_B(A)."""
        check_square(base, "an inverse")
        p, q = self.factors(self.scaled_u, self.v)
        return linalg.rows_times(
            fused_linear.identity_plus_low_rank(y.to(base.dtype).conj_physical(), q, p), base.mT
        ).conj_physical()

    def start_sketch(self, generator: torch.Generator, all_reduce_mean: Apply | None = None) -> None:
        """Directions are never taken from the gradient here."""

    def _normal(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self.v.shape, generator=generator, dtype=torch.complex128)


Unitary.shapes = (BlockUnitary, LowRankUnitary)
