"""Unitary matrices, and complex ones with orthonormal columns or rows: Cayley transforms of low rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from p4torch import linalg, rows
from p4torch.admission import check_base
from p4torch.errors import ArgumentError
from p4torch.low_rank import Directions
from p4torch.properties.orthonormal import Orthonormal
from p4torch.properties.shapes import check_square


class Unitary(Orthonormal):
    """S = {A complex : AᴴA = I}: U(n) for square A `(..., n, n)`, orthonormal columns for tall ones `(..., n, p)`,
    orthonormal rows for wide ones `(..., p, n)`. U, V `(..., n, k)` complex, n the long side.

        R_B(A) = Q A  (wide: A Q),   Q = (I - S/2)⁻¹ (I + S/2),   S = U Vᴴ - V Uᴴ

    S is skew-Hermitian, so Q is unitary for every B. With W = [U, V] and J = [[0, I], [-I, 0]], S = W J Wᴴ and

        Q = I + W C Wᴴ,   C = (-J - WᴴW / 2)⁻¹ `(2k, 2k)`:

    nothing n x n is formed for n x p. B₀ is U = 0 and V ~ `scale` · N(0, 1), complex; near B₀, dQ = dU Vᴴ - V dUᴴ,
    which has 2nk - k² real dimensions. All of U(n) is within reach, it is connected.

    Nothing is tracked: A⁻¹ = Aᴴ and log|det A| = 0; `sign` is the phase det A, computed. A step costs O(npk) beside the
    layer's own products, a merge O(npk) and corrections, as for `p4torch.Orthogonal`.

    Args:
        base: `(..., n, p)` or `(..., p, n)`, complex. One that is not orthonormal is projected: its polar factor.
        rank: k >= 1. 4nk real numbers train.
        scale, train_directions: see `p4torch.low_rank.LowRank`.
        directions: "random", always; a schedule with informed directions leaves them so.

    Raises:
        ArgumentError: for a base that is not a complex, finite matrix.

    Source: Wen and Yin (2013), a feasible method for optimization with orthogonality constraints, for the transform;
    Helfrich, Willmott and Ye (2018) for its use in networks.
    """

    def __init__(
        self,
        base: Tensor,
        rank: int = 1,
        *,
        scale: float = 1.0,
        directions: Directions = "random",
        train_directions: bool = True,
    ) -> None:
        check_base(base)
        if directions != "random":
            raise ArgumentError.of("directions", "random, for complex matrices", repr(directions))
        if not base.is_complex():
            raise ArgumentError.of("base", "complex (Orthogonal is the real one)", base.dtype)
        if base.dim() < 2:
            raise ArgumentError.of("base", "of at least 2 dimensions", tuple(base.shape))
        wide = base.shape[-2] < base.shape[-1]
        super().__init__(base, rank, scale=scale, train_directions=train_directions, side="right" if wide else "left")

    # --- R_B and what follows from it ---------------------------------------------------------------------------------

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
        p, q = self.factors(self.u, self.v)
        return linalg.rows_times(rows.shift(y.to(base.dtype).conj_physical(), q, p), base.mT).conj_physical()

    def inverse(self, base: Tensor) -> Tensor:
        check_square(base, "an inverse")
        return self(base).mT.conj_physical()

    def logabsdet(self, base: Tensor) -> Tensor:
        """0, whatever B is; real."""
        check_square(base, "a determinant")
        return torch.zeros_like(self.skips, dtype=base.real.dtype)

    def watch(self, generator: torch.Generator, average: Callable[[Tensor], Tensor] | None = None) -> None:
        """Directions are never informed by gradients here."""

    def _normal(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self.v.shape, generator=generator, dtype=torch.complex128)
