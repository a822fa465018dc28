"""Gradient directions: where the gradient is large, instead of where a random number falls.

A low-rank perturbation moves its matrix along G V, where G is the gradient of the loss with respect to the matrix on
which the factors act. The best V of k columns spans G's leading right singular vectors; a random sketch Ω `(n, k)`,
moved towards them by one power iteration, comes close (Halko, Martinsson and Tropp 2011):

    S = qr(Gᵀ G Ω),        Gᵀ G Ω = xᵀ (g (gᵀ (x Ω)))

with x `(m, n)` the rows that come in and g the gradient of those that come out. G is never formed: it costs O(m n k),
once a merge, at the last step before it. Ω is a function of (seed, site, merge index), so that nothing needs saving.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.linalg.reference import transformed

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearOperator:
    """What a matrix G and its transpose make of a thin factor `(..., n, k)`."""

    times: Apply
    transposed: Apply

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """The product of two matrices."""
        return LinearOperator(lambda s: self.times(other.times(s)), lambda t: other.transposed(self.transposed(t)))

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return LinearOperator(
            lambda s: self.times(s) + other.times(s),
            lambda t: self.transposed(t) + other.transposed(t),
        )

    def __neg__(self) -> LinearOperator:
        return LinearOperator(lambda s: -self.times(s), lambda t: -self.transposed(t))

    def skew(self) -> LinearOperator:
        """G - Gᵀ."""
        return LinearOperator(
            lambda s: self.times(s) - self.transposed(s),
            lambda t: self.transposed(t) - self.times(t),
        )

    def symmetric(self) -> LinearOperator:
        """G + Gᵀ."""
        return self + LinearOperator(self.transposed, self.times)


def matrix_operator(matrix: Tensor) -> LinearOperator:
    """G given as a matrix."""
    return LinearOperator(lambda s: linalg.tall_matmul(matrix, s), lambda t: linalg.tall_matmul(matrix.mT, t))


def outer_operator(g: Tensor, x: Tensor, stacked: bool = False) -> LinearOperator:
    """G = gᵀ x from rows `(..., m, n)`: one G of all of them, or, `stacked`, one for each leading index."""
    if not stacked:
        g, x = (rows.reshape(-1, rows.shape[-1]) for rows in (g, x))
    return LinearOperator(lambda s: g.mT @ (x @ linalg.column_major(s)), lambda t: x.mT @ (g @ linalg.column_major(t)))


@dataclass
class GradientSketch:
    """Ω `(..., n, k)`, and the gradients that backward passes have shown since: their sum is G. `like` has the shape of
    G Ω. `all_reduce_mean` is over the ranks of a distributed run; all of them ask for directions at the same time."""

    probe: Tensor
    like: Tensor
    all_reduce_mean: Apply | None = None
    parts: list[LinearOperator] = field(default_factory=list)

    def record(self, out: Tensor, gradient: Callable[[Tensor], LinearOperator]) -> None:
        """At the backward pass through `out`, remember `gradient(∂L/∂out)`."""

        def hook(g: Tensor | None) -> None:
            if g is not None:  # an output that the loss does not look at
                self.parts.append(gradient(g.detach().to(self.probe.dtype)))

        if out.requires_grad and not transformed():
            out.register_hook(hook)

    @torch.no_grad()
    def directions(self) -> Tensor:
        """S `(..., n, k)`, orthonormal; not finite where G is not, is zero, or was not seen."""
        with linalg.full_precision(self.probe.device):
            seen = self._total([part.times(self.probe) for part in self.parts], self.like)
            back = self._total([part.transposed(_unit(seen)) for part in self.parts], self.probe)
            return linalg.orthonormal(back)

    def _total(self, tensors: list[Tensor], like: Tensor) -> Tensor:
        total = torch.stack(tensors).sum(0) if tensors else torch.zeros_like(like)
        return total if self.all_reduce_mean is None else self.all_reduce_mean(total)


def _unit(factor: Tensor) -> Tensor:
    """Only the direction counts: scaled, so that the square of a small gradient does not underflow."""
    return factor / factor.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(factor.dtype).tiny)
