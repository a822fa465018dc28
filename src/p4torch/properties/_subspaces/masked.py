"""Matrices with zeros in given places; triangular ones are invertible in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.directions import LinearOperator, matrix_operator
from p4torch.core.identity import fingerprint
from p4torch.core.low_rank import LowRank, LowRankOptions
from p4torch.errors import ArgumentError
from p4torch.properties._math.shapes import check_real_matrix, check_square
from p4torch.properties.linear_subspace import LinearSubspace

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Masked(LinearSubspace, LowRank, kinds=("lower", "upper", "mask")):
    """S = {A `(..., n, m)` : A_ij = 0 where M_ij is false}, R_B(A) = A + M ∘ (U Vᵀ); U `(..., n, k)`, V `(..., m, k)`.

    At B₀ it moves in min(k, entries of the row) directions a row: in n, unless M has empty rows. The whole matrix is
    formed: a step costs O(nmk) beside the three products of a plain layer, a merge O(nmk). Where M is triangular and
    square, inverse, log|det|, sign and solve are by substitution, O(n²) a row, O(n) for the determinant. Options as in
    `LinearSubspace`.
    """

    mask: Tensor

    def __init__(
        self,
        base: Tensor,
        kind: Literal["lower", "upper"] | None = None,
        rank: int = 1,
        *,
        mask: Tensor | None = None,
        **options: Unpack[LowRankOptions],
    ) -> None:
        check_real_matrix(base)
        super().__init__(base, rank, side="add", **options)
        self.kind = kind
        ones = torch.ones(base.shape[-2:], dtype=torch.bool, device=base.device)
        if mask is None:
            mask = ones.tril() if kind == "lower" else ones.triu()
        self.register_buffer("mask", _checked_mask(mask, base))
        self._fingerprint = fingerprint(self.mask)
        lower, upper = not bool(self.mask.triu(1).any()), not bool(self.mask.tril(-1).any())
        self.upper: bool | None = None if not (lower or upper) else upper

    def apply_factors(self, base: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return base + self.mask * linalg.low_rank(p, q)

    def _affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        return linalg.rows_times(x, self.apply_factors(base, self.scaled_u, self.v), bias)

    def pull_back(self, base: Tensor, gradient: LinearOperator) -> LinearOperator:
        """M ∘ G, which takes G itself."""
        identity = torch.eye(base.shape[-1], dtype=self.u.dtype, device=self.u.device)
        return matrix_operator(self.mask * gradient.times(identity))

    # --- triangular matrices ------------------------------------------------------------------------------------------

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        if self.upper is None:
            return super().solve(base, y)
        check_square(base, "an inverse")
        with linalg.full_precision(base.device):
            rows, matrix = y.to(base.dtype), linalg.at_least_single(self(base))
            rows = rows if y.dim() > 1 else rows.unsqueeze(0)
            x = torch.linalg.solve_triangular(matrix, rows.mT.to(matrix.dtype), upper=self.upper).mT.to(base.dtype)
            return x if y.dim() > 1 else x.squeeze(0)

    def inverse(self, base: Tensor) -> Tensor:
        if self.upper is None:
            return super().inverse(base)
        check_square(base, "an inverse")
        with linalg.full_precision(base.device):
            matrix = linalg.at_least_single(self(base))
            identity = linalg.eye_like(matrix).expand_as(matrix)
            return torch.linalg.solve_triangular(matrix, identity, upper=self.upper).to(base.dtype)

    def logabsdet(self, base: Tensor) -> Tensor:
        return super().logabsdet(base) if self.upper is None else self._diagonal(base).abs().log().sum(-1)

    def sign(self, base: Tensor) -> Tensor:
        return super().sign(base) if self.upper is None else self._diagonal(base).detach().sign().prod(-1)

    def _diagonal(self, base: Tensor) -> Tensor:
        """Of R_B(A), from the factors, `(..., n)`."""
        check_square(base, "a determinant")
        change = self.mask.diagonal() * (self.scaled_u * self.v).sum(-1)
        return base.diagonal(dim1=-2, dim2=-1) + change

    # --- the set ------------------------------------------------------------------------------------------------------

    def project(self, tensor: Tensor) -> Tensor:
        """Zeros where they belong."""
        return tensor * self.mask

    def identity(self) -> str:
        zeros = repr(self.kind) if self.kind else f"mask {self._fingerprint}"
        return f"Masked({zeros}, {super().extra_repr()})"

    def extra_repr(self) -> str:
        return f"{self.kind or 'mask'!r}, {int(self.mask.sum())} of {self.mask.numel()} entries, {super().extra_repr()}"


def _checked_mask(mask: Tensor, base: Tensor) -> Tensor:
    """The mask on the device of the base, or an ArgumentError."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentError.of("mask", "a boolean tensor", got)
    if mask.shape != base.shape[-2:]:
        raise ArgumentError.of("mask", f"of shape {tuple(base.shape[-2:])}, as a matrix of the base", tuple(mask.shape))
    if not bool(mask.any()):
        raise ArgumentError.of("mask", "true somewhere", "a mask that leaves nothing to train")
    return mask.detach().clone().to(base.device)
