"""What is tracked beside a base: its inverse, log|det| and sign, kept right through merges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from p4torch import linalg

#: Probe vectors with entries ±1 that look for drift of the inverse at every merge.
PROBES = 4

#: A merge whose inverse is off by more than this many times what rounding explains is corrected at once. A fresh
#: float32 inverse stays between 0.2 and 0.8. With 0.5, random rank-one merges at n = 64 are corrected about every 20th
#: time, and the residual stays within 3 times that of a fresh inverse (within 7 times with 1.0, at every 25th).
DRIFT = 0.5

#: Where the inverse is off by more than this, refined solves and first-order corrections no longer give log|det| to
#: 1e-3 over thousands of merges: it is recomputed from an LU factorisation in float64.
LOOSE = 3e-4

_SCALARS = ("logabsdet", "sign", "admitted")


@dataclass(frozen=True)
class TrackedUpdate:
    """What a merge would make of the base and of the tracked quantities, in float64. Shapes as in the fields of
    `TrackedInverse`; `logabsdet_change` is log|det K| `(...)` and `residual` the probe's `(...)`."""

    base: Tensor
    inverse: Tensor
    logabsdet: Tensor
    sign: Tensor
    logabsdet_change: Tensor
    residual: Tensor


class TrackedInverse(nn.Module):
    """A⁻¹ `(..., n, n)`, log|det A| `(...)` and sign det A `(...)` of a base A, and log|det| as it was `admitted`.

    The inverse has the dtype of the base; the scalars are float64, whatever `.to()` or `.half()` do to the model. A
    change of dtype rounds the base or leaves the inverse less precise than its dtype: it is refreshed at its next use.
    The determinant itself is never formed. The inverse is a frozen Parameter, not a buffer: distributed wrappers
    re-broadcast buffers at every forward pass.
    """

    logabsdet: Tensor
    sign: Tensor
    admitted: Tensor

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.inverse = nn.Parameter(torch.empty_like(base), requires_grad=False)
        for name in _SCALARS:
            self.register_buffer(name, base.new_empty(base.shape[:-2], dtype=torch.float64))
        self.refresh(base)
        self.mark()

    @torch.no_grad()
    def mark(self) -> None:
        """Remember the present log|det| as the one that was admitted, from which bounds are measured."""
        self.admitted.copy_(self.logabsdet)

    def current(self, base: Tensor) -> TrackedInverse:
        """Itself, refreshed if a change of dtype has made it stale."""
        if self.stale:
            self.refresh(base)
        return self

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        """Recompute everything exactly: LAPACK in float64."""
        exact = base.detach().double()
        sign, logabsdet = torch.linalg.slogdet(exact)
        self.inverse.copy_(torch.linalg.inv(exact))
        self.logabsdet.copy_(logabsdet)
        self.sign.copy_(sign)
        self.stale = False

    @torch.no_grad()
    def correct(self, base: Tensor, order: int) -> None:
        """One step of the iterative inversion, in float64; the exact inverse where the step would diverge. log|det| and
        sign are computed afresh."""
        self.inverse.copy_(_corrected(base.double(), self.inverse.double(), order))
        sign, logabsdet = torch.linalg.slogdet(base.double())
        self.logabsdet.copy_(logabsdet)
        self.sign.copy_(sign)

    @torch.no_grad()
    def propose(self, base: Tensor, u: Tensor, v: Tensor, order: int) -> TrackedUpdate:
        """The update for A <- A + U Vᵀ (equations 3 and 4 of the paper for k = 1).

        A⁻¹U and VᵀA⁻¹ are refined against A, so an error of the tracked inverse is not amplified and log|det K| is that
        of the A which is stored. Rounding A + U Vᵀ to the base's dtype moves log|det| by tr(A⁻¹ δ), which is added to
        first order. If the probe finds more drift than rounding explains, the inverse is corrected here; where it is
        off by more than `LOOSE`, before or after, log|det| and sign are computed afresh.
        """
        a, x = base.double(), self.inverse.double()
        u, v = u.double(), v.double()
        y = linalg.refined_left_solve(a, x, u)
        z = linalg.refined_right_solve(a, x, v)
        capacitance = linalg.capacitance(y, v)
        change_sign, change = linalg.slogdet(capacitance)
        nonsingular = change.isfinite()[..., None, None]
        safe = torch.where(nonsingular, capacitance, linalg.eye_like(capacitance))

        exact = a + linalg.low_rank(u, v)
        rounded = exact.to(base.dtype).double()
        inverse = x - y @ linalg.solve(safe, z)
        logabsdet = self.logabsdet + change + (inverse.mT * (rounded - exact)).sum((-2, -1))

        stored = inverse.to(base.dtype).double()
        residual, unit = self._probe(rounded, stored)
        drifted = residual > DRIFT * torch.finfo(base.dtype).eps * unit
        where = drifted & nonsingular[..., 0, 0] & rounded.isfinite().flatten(-2).all(-1)
        if bool(where.any()):
            corrected = _corrected(rounded, stored, order).to(base.dtype).double()
            stored = torch.where(where[..., None, None], corrected, stored)
            residual = self._probe(rounded, stored)[0]
        sign = self.sign * change_sign
        loose = ~(torch.maximum(residual, self._probe(a, x)[0]) <= LOOSE) & nonsingular[..., 0, 0]
        if bool(loose.any()):
            exact_sign, exact_logabsdet = torch.linalg.slogdet(rounded)
            sign, logabsdet = torch.where(loose, exact_sign, sign), torch.where(loose, exact_logabsdet, logabsdet)
        return TrackedUpdate(rounded, stored, logabsdet, sign, change, residual)

    def _probe(self, base: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        n = base.shape[-1]
        probes = torch.randint(0, 2, (n, PROBES), generator=generator).to(base) * 2 - 1
        return linalg.probe_residual(base, inverse, probes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TrackedInverse:
        """Move with the module, but keep the scalars in float64."""
        before, dtype = {name: getattr(self, name) for name in _SCALARS}, self.inverse.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float64:
                setattr(self, name, moved.double() if value.is_meta else value.to(moved.device))
        self.stale |= self.inverse.dtype != dtype
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint of another dtype, or without an inverse, makes it stale, too."""
        came = state_dict.get(prefix + "inverse")
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.stale |= came is None or came.dtype != self.inverse.dtype


def _corrected(base: Tensor, inverse: Tensor, order: int) -> Tensor:
    """A step of the iterative inversion where its residual is below 1, the exact inverse elsewhere. `(..., n, n)`."""
    norm = torch.linalg.matrix_norm(linalg.inversion_residual(base, inverse))
    improved = linalg.hyperpower(base, inverse, order)
    diverges = ~(norm < 1)
    if not bool(diverges.any()):
        return improved
    exact, failed = torch.linalg.inv_ex(base)
    usable = diverges & (failed == 0)
    return torch.where(usable[..., None, None], exact, torch.where(diverges[..., None, None], inverse, improved))
