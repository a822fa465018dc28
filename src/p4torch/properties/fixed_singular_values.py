"""Matrices of given singular values: rotations from both sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.blocks import Blocks, BlockSide
from p4torch.core.shaped import Shaped
from p4torch.core.transaction import Proposal
from p4torch.linalg.matrix_groups import ORTHOGONAL
from p4torch.properties._math.double_parameter import DoubleParameter
from p4torch.properties._math.shapes import check_real_matrix, check_square


class FixedSingularValues(Shaped):
    """S = {L A₀ R : L, R orthogonal}, all matrices with the singular values of the A₀ `(..., n, m)` that was admitted.

        R_B(A) = L(B') A R(B),   L, R = P blockdiag((I - X_i/2)⁻¹ (I + X_i/2)) Pᵀ,   X_i = g (B_i - B_iᵀ) / 2

    Singular vectors train; the norm, the condition number and |det A| stay. Near B₀ = 0, dA = dX' A + A dX. Block
    shapes only. This is POET's reparametrization W <- R W₀ P for language models, as a property.

    Tracked: A in double precision, in which merges are made, so that rounding does not add up; log|det A| and its sign
    are constants. A step costs O(n m b), a merge as much in float64. Assigning another tensor admits another class.

    Args:
        base: `(..., n, m)`; every one is an element of its own class.
        block, side, scale: see `p4torch.core.shaped.Shaped`; both sides by default.

    Raises:
        ArgumentError: for a base that is not a real, finite matrix; for options out of range.

    Source: Horn and Johnson (2013), Matrix Analysis, section 2.6; Qiu et al. (2025), Reparameterized LLM Training via
    Orthogonal Equivalence Transformation (POET).
    """

    def __init__(self, base: Tensor, rank: int | None = None, **options: Any) -> None:
        check_real_matrix(base)
        super().__init__(base, rank, **options)
        self.exact, self.values = DoubleParameter(base), DoubleParameter(_values(base))
        square = base.shape[-2] == base.shape[-1]
        self.determinant = DoubleParameter(_determinant(base)) if square else None

    def logabsdet(self, base: Tensor) -> Tensor:
        """That of A₀, whatever B is."""
        check_square(base, "a determinant")
        assert self.determinant is not None
        return self.determinant.value[1].to(base.dtype)

    def sign(self, base: Tensor) -> Tensor:
        check_square(base, "a determinant")
        assert self.determinant is not None
        return self.determinant.value[0].to(base.dtype)

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """max |σ_i - σ_i(A₀)| / max σ_i(A₀), O(n m²)."""
        largest = self.values.value.amax(-1).clamp_min(torch.finfo(torch.float64).tiny)
        return (_values(tensor) - self.values.value).abs().amax(-1) / largest

    def project(self, tensor: Tensor) -> Tensor:
        """The tensor: admission begins a new class."""
        return tensor

    def nearest(self, tensor: Tensor) -> Tensor:
        """P diag(σ(A₀)) Qᵀ with the singular vectors of the tensor, and the sign of det A₀: nearest in norm."""
        left, _, right = torch.linalg.svd(tensor.detach().double(), full_matrices=False)
        values = self.values.value.clone()
        if self.determinant is not None:
            sign = linalg.unbatched(torch.linalg.slogdet, left @ right)[0]
            values[..., -1] *= torch.where(sign * self.determinant.value[0] < 0, -1.0, 1.0)
        return ((left * values[..., None, :]) @ right).to(tensor.dtype)

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        """The base, as it is, is the exact element from now on, and its class the one that is kept."""
        self.exact.value.copy_(base)
        self.values.value.copy_(_values(base))
        if self.determinant is not None:
            self.determinant.value.copy_(_determinant(base))

    @torch.no_grad()
    def right_inverse(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, Tensor) and tensor.shape == self.base_shape:  # others are refused
            self.values.value.copy_(_values(tensor))
        return super().right_inverse(tensor)

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        """The base from the one in double precision."""
        base.copy_(self.exact.value)


class BlockFixedSingularValues(FixedSingularValues, Blocks):
    """Blocks in so(b)."""

    algebra = ORTHOGONAL

    def natural_side(self, base: Tensor) -> BlockSide:
        return "both"

    @torch.no_grad()
    def propose(self, base: Tensor) -> Proposal:
        candidate = self.exact_candidate(self.exact.value)
        return Proposal(candidate.to(base.dtype), [(self.exact.value, candidate)])


FixedSingularValues.shapes = (BlockFixedSingularValues,)


def _values(matrix: Tensor) -> Tensor:
    """Singular values in falling order, `(..., min(n, m))`, float64."""
    return torch.linalg.svdvals(matrix.detach().double())


def _determinant(matrix: Tensor) -> Tensor:
    """Sign and log|det|, `(2, ...)`, float64."""
    return torch.stack(linalg.unbatched(torch.linalg.slogdet, matrix.detach().double()))
