"""Matrices of a given spectrum: moves within a similarity class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.blocks import Blocks
from p4torch.core.directions import LinearOperator, matrix_operator
from p4torch.core.low_rank import LowRank
from p4torch.core.shaped import Shaped, check_one_side
from p4torch.core.transaction import Proposal, Veto
from p4torch.errors import ArgumentError
from p4torch.linalg.block_diagonal import BlockDiagonal
from p4torch.linalg.matrix_groups import GENERAL_EXPONENTIAL
from p4torch.properties._math.double_parameter import DoubleParameter
from p4torch.properties._math.shapes import check_real_matrix, check_square

#: The invariants that are compared: tr A, tr A², ..., tr A^POWERS.
POWERS = 4

#: After each step ‖VᵀU‖ is at most this: I + VᵀU stays away from singular ones.
MAX_UPDATE_NORM = 0.5

#: Largest bound of the condition number of T = I + U Vᵀ in a merge.
MAX_CONDITION = 1e6


class FixedSpectrum(Shaped):
    """S = {T A₀ T⁻¹ : T invertible}, the similarity class of the matrix A₀ `(..., n, n)` that was admitted: eigenvalues
    stay, eigenvectors train.

        R_B(A) = T A T⁻¹
        blocks:    T = P blockdiag(exp(g B_i)) Pᵀ
        low rank:  T = I + g U Vᵀ,   T⁻¹ = I - g U K⁻¹ Vᵀ,   K = I + g VᵀU,   U, V `(..., n, k)`

    The second is A + P Fᵀ with P = [U, -(A U + U VᵀA U) K⁻¹] and F = [Aᵀ V, V] `(n, 2k)`, for g = 1. B₀ is B = 0, or
    U = 0 and V ~ N(0, 1), where dR = g (dU VᵀA - A dU Vᵀ) has n dimensions for generic A and one V (none for A = c I,
    whose class is a point). After each step U is shortened so that ‖g VᵀU‖ <= 1/2 (a `MergeScheduler` sees to it).

    Tracked: A in double precision, in which merges are made, so that rounding does not add up: the base is always one
    rounding away from the class. log|det A| and its sign are constants. A step costs O(n²k) or O(n²b), a merge as much
    in float64. Assigning another tensor (`layer.weight = X`) admits another class. A class is unbounded: where the loss
    does not hold it, A may grow until its eigenvalues are lost in the rounding of its dtype, although the defect,
    relative to ‖A‖, is small.

    Args:
        base: `(..., n, n)`; every one is an element of its own class.
        rank, block, scale, directions, train_directions: see `p4torch.core.shaped.Shaped`; there is one side only.

    Raises:
        ArgumentError: for a base that is not a real, finite, square matrix.

    Source: Horn and Johnson (2013), Matrix Analysis, section 1.3, for similarity and its invariants; Sherman, Morrison
    and Woodbury for T⁻¹.
    """

    traces: Tensor

    def __init__(self, base: Tensor, rank: int | None = None, **options: Any) -> None:
        check_real_matrix(base)
        check_square(base, "a spectrum")
        super().__init__(base, rank, **options)
        self.exact, self.invariants = DoubleParameter(base), DoubleParameter(_finite_traces(base, "base"))
        self.determinant = DoubleParameter(torch.stack(linalg.unbatched(torch.linalg.slogdet, base.double())))

    def logabsdet(self, base: Tensor) -> Tensor:
        """That of A₀, whatever B is."""
        return self.determinant.value[1].to(base.dtype)

    def sign(self, base: Tensor) -> Tensor:
        return self.determinant.value[0].to(base.dtype)

    def condition(self) -> Tensor:
        """An upper bound `(...)` of the condition number of T."""
        raise NotImplementedError

    def candidate_in_double(self, base: Tensor) -> Tensor:
        """R_B(A) in float64, from the exact A."""
        raise NotImplementedError

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """The largest |tr Aʲ - tr A₀ʲ| / n sʲ over j = 1, ..., 4, with s = ‖A‖ / √n in the Frobenius norm."""
        exact, n = tensor.detach().double(), tensor.shape[-1]
        least = torch.finfo(exact.dtype).tiny ** (0.5 / POWERS)  # of which the highest power does not underflow
        size = (torch.linalg.matrix_norm(exact) / n**0.5).clamp_min(least)
        powers = torch.arange(1, POWERS + 1, device=exact.device)
        return ((_traces(exact) - self.invariants.value).abs() / (n * size[..., None] ** powers)).amax(-1)

    def project(self, tensor: Tensor) -> Tensor:
        """The tensor: admission begins a new class."""
        return tensor

    def nearest(self, tensor: Tensor) -> Tensor:
        """Raises ArgumentError: a mean of similar matrices is not similar to them."""
        raise ArgumentError.of("tensor", "similar to A₀: there is no projection onto a similarity class", "a mean")

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        """The base, as it is, is the exact element from now on, and its class the one that is kept."""
        self.exact.value.copy_(base)
        self.invariants.value.copy_(_traces(base))
        self.determinant.value.copy_(torch.stack(linalg.unbatched(torch.linalg.slogdet, base.double())))

    @torch.no_grad()
    def right_inverse(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, Tensor) and tensor.shape == self.base_shape:  # others are refused
            self.invariants.value.copy_(_finite_traces(tensor, "tensor"))
        return super().right_inverse(tensor)

    # --- merges -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def propose(self, base: Tensor) -> Proposal:
        candidate = self.candidate_in_double(base)
        veto = Veto("T is nearly singular", ~(self.condition() <= MAX_CONDITION))
        return Proposal(candidate.to(base.dtype), [(self.exact.value, candidate)], [veto])

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        """The base from its exact copy."""
        base.copy_(self.exact.value)


class BlockFixedSpectrum(FixedSpectrum, Blocks):
    """Similarity transformations by blocks in gl(b)."""

    algebra = GENERAL_EXPONENTIAL

    def __init__(self, base: Tensor, rank: None = None, **options: Any) -> None:
        check_one_side(options, "acts on both, as T and T⁻¹")
        super().__init__(base, rank, **options)

    def element(self, name: str, dtype: torch.dtype | None = None, inverse: bool = False) -> BlockDiagonal | None:
        """T on the left, T⁻¹ on the right."""
        return super().element("right", dtype, inverse if name == "left" else not inverse)

    def condition(self) -> Tensor:
        """Π ‖exp(±X)‖ <= exp(2 max ‖X_i‖)."""
        x = self.algebra_blocks("right", torch.float64)
        assert x is not None
        return (2 * torch.linalg.matrix_norm(x).amax(-1)).exp()

    def candidate_in_double(self, base: Tensor) -> Tensor:
        return self.exact_candidate(self.exact.value)


class LowRankFixedSpectrum(FixedSpectrum, LowRank):
    """Similarity transformations by T = I + g U Vᵀ."""

    relative = True

    def similarity_factors(self, base: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """P and F."""
        with linalg.full_precision(base.device):
            a_u, a_t_v = linalg.tall_matmul(base, u), linalg.tall_matmul(base.mT, v)
            right = a_u + u @ (a_t_v.mT @ u)
            return torch.cat([u, -linalg.solve_rows(linalg.capacitance(u, v).mT, right)], -1), torch.cat([a_t_v, v], -1)

    def factors_at(self, base: Tensor) -> tuple[Tensor, Tensor]:
        return self.similarity_factors(base, self.scaled_u, self.v)

    @torch.no_grad()
    def additive_factors(self, base: Tensor) -> tuple[Tensor, Tensor]:
        return self.similarity_factors(self.exact.value, self.scaled_u.double(), self.v.double())

    def pull_back(self, base: Tensor, gradient: LinearOperator) -> LinearOperator:
        """∂L/∂(U Vᵀ) = G Aᵀ - Aᵀ G near B₀."""
        transposed = matrix_operator(base.detach().mT)
        return gradient @ transposed + -(transposed @ gradient)

    @torch.no_grad()
    def after_step(self) -> None:
        product = linalg.at_least_single(self.v).mT @ linalg.at_least_single(self.scaled_u)
        self.clip_factor(torch.linalg.matrix_norm(product), MAX_UPDATE_NORM)

    @torch.no_grad()
    def condition(self) -> Tensor:
        u, v = self.scaled_u.double(), self.v.double()
        inverse, _ = torch.linalg.inv_ex(linalg.capacitance(u, v))
        size = torch.linalg.matrix_norm(u) * torch.linalg.matrix_norm(v)
        return (1 + size) * (1 + size * torch.linalg.matrix_norm(inverse))

    @torch.no_grad()
    def candidate_in_double(self, base: Tensor) -> Tensor:
        return linalg.add_low_rank(self.exact.value, *self.additive_factors(base))


FixedSpectrum.shapes = (BlockFixedSpectrum, LowRankFixedSpectrum)


def _finite_traces(matrix: Tensor, argument: str) -> Tensor:
    traces = _traces(matrix)
    if not bool(traces.isfinite().all()):
        got = f"entries up to {float(matrix.abs().max()):.3g}"
        raise ArgumentError.of(argument, f"small enough for tr A^{POWERS} to be a number in float64", got)
    return traces


def _traces(matrix: Tensor) -> Tensor:
    """tr A, ..., tr A⁴ `(..., 4)` in float64, from A and A²: two products of entries and one of matrices."""
    exact = matrix.detach().double()
    square = exact @ exact
    pairs = ((exact, None), (exact, exact), (square, exact), (square, square))
    return torch.stack(
        [
            first.diagonal(dim1=-2, dim2=-1).sum(-1) if other is None else (first * other.mT).sum((-2, -1))
            for first, other in pairs
        ],
        -1,
    )
