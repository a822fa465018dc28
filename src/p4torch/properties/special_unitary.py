"""Unitary matrices of determinant 1: the gauge group of lattice field theory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.blocks import Blocks
from p4torch.core.transaction import Proposal
from p4torch.errors import ArgumentError
from p4torch.linalg.matrix_groups import SPECIAL_UNITARY
from p4torch.properties._math.orthonormal import Orthonormal
from p4torch.properties._math.shapes import check_complex_matrix, check_square


class SpecialUnitary(Orthonormal):
    """S = SU(n) = {A complex `(..., n, n)` : AᴴA = I, det A = 1}; stacks over the links of a lattice as they come.

        R_B(A) = A Q  (side="left": Q A),   Q = P blockdiag(exp(X_i)) Pᵀ,
        X_i = g (B_i - B_iᴴ) / 2 less its trace,   B `(..., m, b, b)` complex

    X is in su(b), so Q is in SU(n) for every B. Near B₀ = 0, dQ = g dX in m (b² - 1) real dimensions; all of SU(n) is
    within reach. Block shapes only. log|det A| = 0, the determinant is 1, A⁻¹ = Aᴴ; nothing is tracked. Merges and
    `correct` make columns orthonormal again, as for `p4torch.Orthogonal`, and take the phase of det A out, O(n³).

    Args:
        base: `(..., n, n)`, complex, n >= 2. Another one is projected: its polar factor, times det^(-1/n).
        block, side, scale: see `p4torch.core.shaped.Shaped`; 2 <= b.

    Raises:
        ArgumentError: for a base that is not a complex, finite, square matrix; for options out of range.

    Source: Hall (2015), Lie Groups, Lie Algebras, and Representations, section 3.4; Boyda et al. (2020), for SU(N) in
    flows of lattice gauge theory.
    """

    def __init__(self, base: Tensor, rank: int | None = None, **options: Any) -> None:
        check_complex_matrix(base, "Orthogonal is the real one")
        check_square(base, "a determinant")
        if base.shape[-1] < 2:
            raise ArgumentError.of("base", "of size 2 at least", tuple(base.shape))
        super().__init__(base, rank, **options)

    def sign(self, base: Tensor) -> Tensor:
        """det A = 1."""
        return torch.ones_like(self.skips, dtype=base.dtype)

    def defect(self, tensor: Tensor) -> Tensor:
        """‖AᴴA - I‖ / √n + |det A - 1|."""
        return super().defect(tensor) + (_determinant(tensor) - 1).abs()

    def project(self, tensor: Tensor) -> Tensor:
        return _without_phase(super().project(tensor))

    def propose(self, base: Tensor) -> Proposal:
        proposal = super().propose(base)
        assert proposal.base is not None
        return Proposal(_without_phase(proposal.base))

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        super().correct(base)
        base.copy_(_without_phase(base))


class BlockSpecialUnitary(SpecialUnitary, Blocks):
    """Blocks in su(b)."""

    algebra = SPECIAL_UNITARY


SpecialUnitary.shapes = (BlockSpecialUnitary,)


def _determinant(matrix: Tensor) -> Tensor:
    return torch.linalg.det(linalg.in_double(matrix.detach()))


def _without_phase(matrix: Tensor) -> Tensor:
    """A det(A)^(-1/n), of a unitary A."""
    angle = _determinant(matrix).angle() / matrix.shape[-1]
    phase = torch.polar(torch.ones_like(angle), -angle)[..., None, None]
    return (linalg.in_double(matrix) * phase).to(matrix.dtype)
