"""Matrices of bounded rank, moved through their two factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch._options import check_integer
from p4torch.core.perturbation import Perturbation
from p4torch.core.transaction import Proposal
from p4torch.properties._math.factors import Factors, balanced
from p4torch.properties._math.shapes import check_real_matrix


class FixedRank(Perturbation):
    """S = {A `(..., n, m)` : rank A <= r}; tracked factors L `(..., n, r)`, R `(..., m, r)` with A = L Rᵀ, and
    B = (U, V) of the same shapes.

        R_B(A) = (L + U) (R + V)ᵀ,   B₀: U = V = 0

    Near B₀, dA = dU Rᵀ + L dVᵀ, the whole tangent space of S: r(n + m - r) dimensions. Nothing is drawn at random.
    Where A has rank below r, columns of L are 0 and those of R are not, so that the rank can grow.

    The factors are the truth, A is their product, formed anew at each merge: its rank is r up to one rounding of its
    entries, whatever the number of merges. A step of a linear layer costs O((n + m)r) a row, and A is not read at all
    (where r(n + m) >= nm, the product is formed instead). A merge costs O(nmr): L + U and R + V are balanced, √σ to
    each of a pair of columns, by QR and an SVD of r x r, and turned so that they stay as they were as far as they can.
    `solve`, `inverse`, `logabsdet` are those of any dense matrix; they exist for r = n only.

    Args:
        base: `(..., n, m)`. One of higher rank is projected: its largest r singular values are kept.
        rank: r, 1 <= r <= min(n, m). (n + m)r numbers train.

    Raises:
        ArgumentError: for a base that is not a real, finite matrix; for a rank out of range.

    Source: Mishra, Meyer, Bonnabel and Sepulchre (2014), fixed-rank matrix factorizations and Riemannian low-rank
    optimization, for balanced factors; Eckart and Young (1936) for the projection.
    """

    def __init__(self, base: Tensor, rank: int) -> None:
        super().__init__(base)
        check_real_matrix(base)
        self.rank = rank = check_integer("rank", rank, 1, min(base.shape[-2:]))
        self.factors = Factors(base, rank)
        self.u = nn.Parameter(torch.zeros_like(self.factors.left))
        self.v = nn.Parameter(torch.zeros_like(self.factors.right))
        self.refresh(base)

    # --- R_B ----------------------------------------------------------------------------------------------------------

    def apply_factors(self) -> tuple[Tensor, Tensor]:
        """L + U and R + V."""
        return self.factors.left + self.u, self.factors.right + self.v

    def forward(self, base: Tensor) -> Tensor:
        left, right = self.apply_factors()
        return left @ right.mT

    def matmul(self, base: Tensor, x: Tensor) -> Tensor:
        return self.affine(base, x, None)

    def affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        n, m = base.shape[-2:]
        if self.rank * (n + m) >= n * m:
            return linalg.rows_times(x, self(base), bias)
        left, right = self.apply_factors()
        return linalg.rows_times(linalg.rows_times(x, right.mT), left, bias)

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.u.zero_()
        self.v.zero_()

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """The distance to S relative to the norm, (Σ_{i>r} σ_i² / Σ_i σ_i²)^½, by all singular values."""
        values = torch.linalg.svdvals(linalg.scaled_by_largest(tensor))
        rest = torch.linalg.vector_norm(values[..., self.rank :], dim=-1)
        return rest / torch.linalg.vector_norm(values, dim=-1).clamp_min(torch.finfo(values.dtype).tiny)

    def project(self, tensor: Tensor) -> Tensor:
        """The nearest matrix of S: the SVD, cut off."""
        left, values, right = torch.linalg.svd(tensor.double(), full_matrices=False)
        kept = (left[..., : self.rank] * values[..., None, : self.rank]) @ right[..., : self.rank, :]
        return kept.to(tensor.dtype)

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        self.factors.refresh(base)

    @torch.no_grad()
    def right_inverse(self, tensor: Tensor) -> Tensor:
        admitted: Tensor = super().right_inverse(tensor)
        return admitted.copy_(self(admitted))  # what is nearly in S gets the precision of its dtype

    def propose(self, base: Tensor) -> Proposal:
        left, right = (
            tracked.double() + move.double()
            for tracked, move in ((self.factors.left, self.u), (self.factors.right, self.v))
        )
        finite = (left.isfinite().flatten(-2).all(-1) & right.isfinite().flatten(-2).all(-1))[..., None, None]
        left, right = balanced(torch.where(finite, left, 0), torch.where(finite, right, 0))
        left, right = left.to(base.dtype), right.to(base.dtype)
        product = left.double() @ right.double().mT
        return Proposal(product.to(base.dtype), [(self.factors.left, left), (self.factors.right, right)])

    def extra_repr(self) -> str:
        return f"rank={self.rank}"
