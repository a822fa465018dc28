"""Gradient directions where the loss sees the inverse: R⁻¹ is close to A⁻¹ at the end of an interval, too."""

from __future__ import annotations

from torch import Tensor

from p4torch.core.directions import matrix_operator, outer_operator
from p4torch.core.low_rank import LowRank


def record_solve(perturbation: LowRank, base: Tensor, x: Tensor, inverse_transposed: Tensor) -> None:
    """For x = y R⁻ᵀ `(..., m, n)`: ∂L/∂R = -R⁻ᵀ gᵀ x, with A⁻ᵀ for R⁻ᵀ."""
    if perturbation.sketch is not None:
        back = matrix_operator(inverse_transposed)
        perturbation.sketch.record(
            x, lambda g: perturbation.pull_back(base, back @ outer_operator(-g, x.detach(), base.dim() > 2))
        )


def record_inverse(perturbation: LowRank, base: Tensor, inverse: Tensor, inverse_transposed: Tensor) -> None:
    """For R⁻¹ `(..., n, n)`: ∂L/∂R = -R⁻ᵀ g R⁻ᵀ, with A⁻ᵀ for R⁻ᵀ."""
    if perturbation.sketch is not None:
        back = matrix_operator(inverse_transposed)
        perturbation.sketch.record(inverse, lambda g: perturbation.pull_back(base, back @ matrix_operator(-g) @ back))
