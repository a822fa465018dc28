"""Scaling matrices to determinant 1."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.errors import ArgumentError


def volume_factor(logabsdet: Tensor, matrix: Tensor) -> Tensor:
    """det(A)^(-1/n), `(..., 1, 1)`."""
    return (-logabsdet / matrix.shape[-1]).exp()[..., None, None]


def rescaled_to_unit_determinant(
    matrix: Tensor, inverse: Tensor, logabsdet: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(A, A⁻¹, log|det A|) with A scaled to determinant 1, and rounded, where a scaling can be told from rounding. What
    rounding A adds to log|det A| is tr(A⁻¹ δ), to first order."""
    drifted = logabsdet.abs() > matrix.shape[-1] * torch.finfo(dtype).eps / 2
    factor = volume_factor(torch.where(drifted, logabsdet, 0.0), matrix)
    exact, inverse = matrix * factor, inverse / factor
    rounded = exact.to(dtype).double()
    change = (inverse.mT * (rounded - exact)).sum((-2, -1))
    return rounded, inverse, torch.where(drifted, change, logabsdet)


def unit_volume(tensor: Tensor) -> Tensor:
    """det(A)^(-1/n) A. Raises ArgumentError for det A < 0."""
    sign, logabsdet = linalg.unbatched(torch.linalg.slogdet, tensor.double())
    if bool((sign < 0).any()):
        got = f"{int((sign < 0).sum())} of {sign.numel()} with a negative one, which no scaling mends"
        raise ArgumentError.of("tensor", "of positive determinant", got)
    return (tensor.double() * volume_factor(logabsdet, tensor)).to(tensor.dtype)
