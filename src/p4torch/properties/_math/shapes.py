"""Bases that properties of matrices refuse by their kind or shape."""

from __future__ import annotations

from torch import Tensor

from p4torch.core.validation import check_base
from p4torch.errors import ArgumentError


def check_real_matrix(base: Tensor, hint: str = "") -> None:
    """Raise ArgumentError for anything but a finite real tensor `(..., n, m)`; `hint` names a property of complex
    ones."""
    check_base(base)
    if base.is_complex():
        raise ArgumentError.of("base", f"real ({hint})" if hint else "real", base.dtype)
    if base.dim() < 2:
        raise ArgumentError.of("base", "of at least 2 dimensions", tuple(base.shape))


def check_complex_matrix(base: Tensor, hint: str) -> None:
    """Raise ArgumentError for anything but a finite complex tensor `(..., n, m)`; the hint says what real ones have."""
    check_base(base)
    if not base.is_complex():
        raise ArgumentError.of("base", f"complex ({hint})", base.dtype)
    if base.dim() < 2:
        raise ArgumentError.of("base", "of at least 2 dimensions", tuple(base.shape))


def check_square(base: Tensor, what: str) -> None:
    """Raise ArgumentError where only square matrices have what was asked for."""
    if base.shape[-1] != base.shape[-2]:
        raise ArgumentError.of("base", f"square, (..., n, n), for {what}", tuple(base.shape))
