"""The targets T: what W = I is to become, x ↦ x Tᵀ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch.parametrize.sites import counter_based_generator

#: Eigenvalues of the positive definite target: equally spaced from 0.5 to 1.5.
SPECTRUM = (0.5, 1.5)


@dataclass(frozen=True)
class Problem:
    """A target matrix T `(n, n)`, a pure function of the seed; training starts from W = I."""

    name: str
    title: str
    size: int
    make: Callable[[int, torch.Generator], Tensor]

    def target(self, seed: int) -> Tensor:
        """T in float64."""
        return self.make(self.size, counter_based_generator(seed, f"target/{self.name}", 0))


def rotation(size: int, generator: torch.Generator) -> Tensor:
    """A random element of SO(n), by Haar's measure: QR of a Gaussian matrix, signs made unique, det made +1."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= torch.linalg.det(q).sign()
    return q


def positive_definite(size: int, generator: torch.Generator) -> Tensor:
    """Q diag(λ) Qᵀ with λ equally spaced over `SPECTRUM` and Q random."""
    q = rotation(size, generator)
    return (q * torch.linspace(*SPECTRUM, size, dtype=torch.float64)) @ q.mT


def minus_identity(size: int, generator: torch.Generator) -> Tensor:
    """-I. For odd n its determinant is -1: on the way from I the singular set must be crossed."""
    return -torch.eye(size, dtype=torch.float64)


_ALL = (
    Problem("positive-32", "positive definite, 32-d", 32, positive_definite),
    Problem("rotation-128", "random in SO(128)", 128, rotation),
    Problem("minus-101", "-I, 101-d", 101, minus_identity),
    Problem("rotation-64", "random in SO(64)", 64, rotation),
)

PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in _ALL}
