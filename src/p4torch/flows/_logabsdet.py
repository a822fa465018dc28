"""What linear layers of a flow ask of a perturbation: a product and log|det|, of which `Invertible` shares the work."""

from __future__ import annotations

from torch import Tensor

from p4torch.core.perturbation import Perturbation
from p4torch.properties import Invertible


def affine_logabsdet(perturbation: Perturbation, base: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """x R_B(A)ᵀ + b and log|det R_B(A)|."""
    if isinstance(perturbation, Invertible):
        return perturbation.affine_logabsdet(base, x, bias)
    return perturbation.affine(base, x, bias), perturbation.logabsdet(base)


def solve_logabsdet(perturbation: Perturbation, base: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """y R_B(A)⁻ᵀ and log|det R_B(A)|."""
    if isinstance(perturbation, Invertible):
        return perturbation.solve_logabsdet(base, y)
    return perturbation.solve(base, y), perturbation.logabsdet(base)


def with_logabsdet(perturbation: Perturbation, base: Tensor) -> tuple[Tensor, Tensor]:
    """R_B(A) and log|det R_B(A)|."""
    if isinstance(perturbation, Invertible):
        return perturbation.with_logabsdet(base)
    return perturbation(base), perturbation.logabsdet(base)
