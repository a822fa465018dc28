"""Which matrices are invertible to working precision."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.transaction import Veto
from p4torch.errors import ArgumentError

#: An inverse X with max|A X - I| above it is of no use.
RESIDUAL_BOUND = 0.1

#: Of the iterative inversion that corrects a tracked inverse.
ORDER = 7


def check_nonsingular(base: Tensor, argument: str = "base", inverse: Tensor | None = None) -> None:
    """Raise ArgumentError for a tensor that is not real, square and nonsingular; `inverse` is one that is known."""
    check_real_square(base, argument)
    bad = singular(base, inverse)
    if bool(bad.any()):
        got = f"{int(bad.sum())} singular to working precision of {bad.numel()} matrices"
        raise ArgumentError.of(argument, "nonsingular", got)


def check_real_square(base: Tensor, argument: str = "base") -> None:
    """Raise ArgumentError for a tensor that is not real, or not square."""
    if base.is_complex():
        raise ArgumentError.of(argument, "real", base.dtype)
    if base.dim() < 2 or base.shape[-1] != base.shape[-2]:
        raise ArgumentError.of(argument, "square, (..., n, n)", tuple(base.shape))


def veto_residual(residual: Tensor, reason: str = "A is too badly conditioned for its dtype") -> Veto:
    """A veto where a residual A X - I `(...)` of the new inverse is above `RESIDUAL_BOUND`."""
    return Veto(f"the inverse's residual is above {RESIDUAL_BOUND:g}: {reason}", ~(residual <= RESIDUAL_BOUND))


def singular(base: Tensor, inverse: Tensor | None = None) -> Tensor:
    """`(...)`: where A has no inverse X in its own dtype with max|A X - I| <= `RESIDUAL_BOUND`: neither the one that is
    known nor LAPACK's. The known one may be that of another matrix: ‖A X - I‖ < 1 proves that A is nonsingular."""
    exact = base.detach().double()
    if inverse is not None:
        norm = torch.linalg.matrix_norm(linalg.inversion_residual(exact, inverse.detach().double()))
        if bool((norm <= RESIDUAL_BOUND).all()):
            return torch.zeros_like(norm, dtype=torch.bool)
    computed = linalg.unbatched(torch.linalg.inv_ex, exact)[0].to(base.dtype).double()
    return ~(linalg.inversion_residual(exact, computed).abs().amax((-2, -1)) <= RESIDUAL_BOUND)
