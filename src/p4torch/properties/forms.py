"""Forms of a low-rank perturbation of an invertible matrix: how factors U, V `(..., n, k)` act on a base A.

Each is a set of pure functions, differentiable any number of times in U and V. X is the tracked inverse of A.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from p4torch import linalg


class Form(Protocol):
    """What a form answers. Rows x, y are `(..., m, n)`."""

    def factor(self, base: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """U' with R_B(A) = A + U' Vᵀ."""

    def matmul(self, base: Tensor, u: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """x R_B(A)ᵀ."""

    def solve(self, inverse: Tensor, u: Tensor, v: Tensor, y: Tensor) -> Tensor:
        """y R_B(A)⁻ᵀ."""

    def inverse(self, inverse: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """R_B(A)⁻¹."""

    def change(self, inverse: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Sign and logarithm of |det R_B(A) / det A|, `(...)` each."""


class Additive:
    """R_B(A) = A + U Vᵀ: Sherman-Morrison-Woodbury and the determinant lemma, K = I + Vᵀ X U.

    R_B(A)⁻¹ = X - X U K⁻¹ Vᵀ X,    det R_B(A) = det K det A
    """

    def factor(self, base: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return u

    def matmul(self, base: Tensor, u: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return linalg.rows_times(x, base) + (x @ v) @ u.mT

    def solve(self, inverse: Tensor, u: Tensor, v: Tensor, y: Tensor) -> Tensor:
        plain = linalg.rows_times(y, inverse)
        x_u = inverse @ u
        capacitance = linalg.capacitance(x_u, v)
        inverted = linalg.solve(capacitance, linalg.eye_like(capacitance))
        return plain - linalg.rows_times(plain @ v, inverted) @ x_u.mT

    def inverse(self, inverse: Tensor, u: Tensor, v: Tensor) -> Tensor:
        x_u = inverse @ u
        return inverse - x_u @ linalg.solve(linalg.capacitance(x_u, v), v.mT @ inverse)

    def change(self, inverse: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return linalg.slogdet(linalg.capacitance(inverse @ u, v))


class Exponential:
    """R_B(A) = A exp(U Vᵀ) = A (I + U φ₁(VᵀU) Vᵀ): never singular, the sign of the determinant never changes.

    R_B(A)⁻¹ = (I - U φ₁(-VᵀU) Vᵀ) X,    log|det R_B(A)| = log|det A| + tr(VᵀU)
    """

    def factor(self, base: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return base @ (u @ linalg.phi1(v.mT @ u))

    def matmul(self, base: Tensor, u: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return linalg.rows_times(x + ((x @ v) @ linalg.phi1(v.mT @ u).mT) @ u.mT, base)

    def solve(self, inverse: Tensor, u: Tensor, v: Tensor, y: Tensor) -> Tensor:
        plain = linalg.rows_times(y, inverse)
        return plain - ((plain @ v) @ linalg.phi1(-(v.mT @ u)).mT) @ u.mT

    def inverse(self, inverse: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return inverse - (u @ linalg.phi1(-(v.mT @ u))) @ (v.mT @ inverse)

    def change(self, inverse: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        change = (u * v).sum((-2, -1))
        return torch.ones_like(change.detach()), change


FORMS: dict[str, Form] = {"additive": Additive(), "exponential": Exponential()}
