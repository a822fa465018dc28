"""What is tracked beside a base: its inverse, log|det| and sign, kept right through merges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch._eager import eager
from p4torch.linalg.drift import (
    CONVERGENT,
    PROBES,
    correct_columns,
    corrected,
    part_of,
    part_residual,
    probes_of,
    rounding_of,
)
from p4torch.linalg.in_place import InPlaceUpdate, in_place_update

#: Where the inverse is off by more than this, refined solves and first-order corrections no longer give log|det| to
#: 1e-3 over thousands of merges: it is recomputed from an LU factorisation in float64.
LOOSE = 3e-4

#: Up to this size every merge takes the closer look, which also counts what rounding A does to log|det A|: updates
#: below half a unit in the last place of A are lost, 1e-5 in a long walk. Beyond, time counts more.
CLOSE = 256

_SCALARS = ("logabsdet", "sign", "admitted")


@dataclass(frozen=True)
class TrackedUpdate:
    """What a merge would make of the base and of the tracked quantities: matrices in the base's dtype, scalars in
    float64. Shapes as in the fields of `TrackedInverse`; `logabsdet_change` is log|det K| `(...)` and `residual` the
    probe's `(...)`. Where there is a `step`, it makes the matrices in place, and there are none here."""

    base: Tensor | None
    inverse: Tensor | None
    logabsdet: Tensor
    sign: Tensor
    logabsdet_change: Tensor
    residual: Tensor
    step: InPlaceUpdate | None = None


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
        self.probed: tuple[int, int] | None = None
        for name in _SCALARS:
            self.register_buffer(name, base.new_empty(base.shape[:-2], dtype=torch.float64))
        self.refresh(base)
        self.set_reference()

    @torch.no_grad()
    def set_reference(self) -> None:
        """Remember the present log|det| as the one that was admitted, from which bounds are measured."""
        self.admitted.copy_(self.logabsdet)

    def current(self, base: Tensor) -> TrackedInverse:
        """Itself, refreshed if a change of dtype has made it stale."""
        if self.stale:
            self.refresh(base)
        return self

    @eager
    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        """Recompute everything exactly: LAPACK in float64."""
        exact = base.detach().double()
        sign, logabsdet = linalg.unbatched(torch.linalg.slogdet, exact)
        self.inverse.copy_(linalg.unbatched(torch.linalg.inv_ex, exact)[0])
        self.logabsdet.copy_(logabsdet)
        self.sign.copy_(sign)
        self.stale = False

    def mark_verified(self, base: Tensor) -> None:
        """The base and its inverse, as they are now, have just been probed: by a merge."""
        self.probed = (base._version, self.inverse._version)

    @eager
    @torch.no_grad()
    def correct(self, base: Tensor, order: int) -> None:
        """Where a probe finds more drift than rounding explains: one step of the iterative inversion, or the exact
        inverse where the step would diverge, and log|det| and sign afresh. Elsewhere, or right after a merge that has
        probed and corrected already, nothing."""
        if self.probed == (base._version, self.inverse._version):
            return
        inverse, probes = self.inverse.detach(), probes_of(base)
        with linalg.full_precision(base.device):
            residual, unit = linalg.probe_residual(base, inverse, probes)
            rounding = rounding_of(base) * unit
            drifted = ~(residual <= rounding)
            if bool(drifted.any()):
                self.inverse.copy_(corrected(base, inverse, order, rounding, drifted))
                sign, logabsdet = linalg.unbatched(torch.linalg.slogdet, base.double())
                self.logabsdet.copy_(torch.where(drifted, logabsdet, self.logabsdet))
                self.sign.copy_(torch.where(drifted, sign, self.sign))

    def residual(self, base: Tensor, inverse: Tensor) -> Tensor:
        """max|A X p - p| over the probes, `(...)`, in float64."""
        return linalg.probe_residual(base, inverse, probes_of(base))[0]

    @torch.no_grad()
    def propose(
        self, base: Tensor, u: Tensor, v: Tensor, order: int, turn: int = 0, *, in_place: bool = False
    ) -> TrackedUpdate:
        """The update for A <- A + U Vᵀ (equations 3 and 4 of the paper for k = 1).

        A⁻¹U and VᵀA⁻¹ are refined against A, so an error of the tracked inverse is not amplified and log|det K| is that
        of the A which is stored. Rounding A + U Vᵀ to the base's dtype moves log|det| by tr(A⁻¹ δ), which is added to
        first order.

        Every time, some columns of the inverse are corrected: `turn`, a counter, says which. If a probe finds more
        drift than rounding explains, all of them are, at once. Where the inverse is off by more than `LOOSE`, before or
        after, log|det| and sign are computed afresh.

        With `in_place`, large and well-conditioned matrices in float32 take a `InPlaceUpdate` instead.
        """
        probes, u, v = probes_of(base), u.double(), v.double()
        if in_place and base.shape[-1] > CLOSE and base.dtype == torch.float32:
            step = in_place_update(base, self.inverse.detach(), u, v, probes, part_of(base.shape[-1], turn))
            if step is not None:
                logabsdet = self.logabsdet + step.change
                return TrackedUpdate(None, None, logabsdet, self.sign * step.sign, step.change, step.residual, step)
        y, z, capacitance, before = linalg.refined_solves(base, self.inverse.detach(), u, v, probes[:, :1])
        change_sign, change = linalg.slogdet(capacitance)
        nonsingular = change.isfinite()
        safe = torch.where(nonsingular[..., None, None], capacitance, linalg.eye_like(capacitance))
        inverse, seen, sums = _inverse_after(self.inverse.detach(), y, linalg.solve(safe, z).mT, probes)
        part = part_of(base.shape[-1], turn)
        seen = torch.cat([seen, inverse[..., part].double()], dim=-1)
        rounded, image, unit, trace = _base_after(base, u, v, inverse, seen, sums)
        sign, logabsdet = self.sign * change_sign, self.logabsdet + change + trace

        probed = (image[..., :PROBES] - probes).abs().amax((-2, -1))
        update = TrackedUpdate(rounded, inverse, logabsdet, sign, change, probed)
        return _without_drift(update, part, image[..., PROBES:], unit, before, order)

    @torch.no_grad()
    def update_to(
        self, base: Tensor, inverse: Tensor, sign: Tensor, change: Tensor, order: int, turn: int, dtype: torch.dtype
    ) -> TrackedUpdate:
        """The update for a new base whose inverse and log|det| are known in float64 up to the rounding that is tracked:
        A' = L A R with X' = R⁻¹ X L⁻¹ and log|det A'| = log|det A| + `change`, say.

        As in `propose`, rounding A' moves log|det| by tr(X' δ), some columns of the inverse are corrected in turn, or
        all of them where a probe finds more drift than rounding explains."""
        probes, rounded, stored = probes_of(base), base.to(dtype), inverse.to(dtype)
        trace = (inverse.mT * (rounded.double() - base)).sum((-2, -1))
        signs, logabsdet = self.sign * sign, self.logabsdet + change + trace
        part = part_of(base.shape[-1], turn)
        probed, unit = linalg.probe_residual(rounded, stored, probes)
        update = TrackedUpdate(rounded, stored, logabsdet, signs, change, probed)
        image = rounded.double() @ stored[..., part].double()
        return _without_drift(update, part, image, unit, torch.zeros_like(probed), order)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TrackedInverse:
        """Move with the module, but keep the scalars in float64."""
        before, dtype = {name: getattr(self, name) for name in _SCALARS}, self.inverse.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float64:
                setattr(self, name, moved.double() if value.is_meta else value.to(moved.device))
        if self.inverse.dtype != dtype:
            self._mark_stale()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint of another dtype, or without an inverse, makes it stale, too; a whole one is taken as it is."""
        saved = state_dict.get(prefix + "inverse")
        super()._load_from_state_dict(state_dict, prefix, *args)
        if saved is None or saved.dtype != self.inverse.dtype:
            self._mark_stale()
        elif not self.sign.is_meta:
            self.stale = not bool(self.sign.all())

    def _mark_stale(self) -> None:
        """Be stale, also for those who load what is saved from here: no determinant has the sign 0."""
        self.stale = True
        self.sign = torch.zeros_like(self.sign)


def _inverse_after(x: Tensor, y: Tensor, w: Tensor, probes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X' = X - Y Wᵀ as it is stored, X' p and |X'| 1."""
    inverse = torch.empty_like(x)
    seen, sums = y.new_empty(*x.shape[:-1], PROBES), y.new_empty(*x.shape[:-1], 1)
    probes = linalg.column_major(probes)
    for rows, stored, _ in linalg.rounded_sum(x, -y, w, inverse):
        seen[..., rows, :] = stored @ probes
        sums[..., rows, :] = linalg.at_least_single(inverse[..., rows, :]).abs().sum(-1, keepdim=True)
    return inverse, seen, sums


def _base_after(
    base: Tensor, u: Tensor, v: Tensor, inverse: Tensor, seen: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A' = A + U Vᵀ + δ as it is stored, A' F for the thin F `seen`, the unit max |A'| |X'| 1, and tr(X' δ)."""
    short, trace = linalg.at_least_single(inverse).dtype, torch.zeros_like(sums[..., 0, 0])
    seen, sums = linalg.column_major(seen), sums.to(short)
    rounded, image, units = torch.empty_like(base), torch.empty_like(seen), torch.empty_like(sums)
    for rows, stored, exact in linalg.rounded_sum(base, u, v, rounded):
        image[..., rows, :] = (seen.mT @ stored.mT).mT  # a fifth faster than `stored @ seen`
        units[..., rows, :] = rounded[..., rows, :].to(short).abs() @ sums
        trace += stored.sub_(exact).to(short).mT.contiguous().mul_(inverse[..., rows]).sum((-2, -1))
    return rounded, image, units.double().amax((-2, -1)), trace


def _without_drift(
    update: TrackedUpdate, part: slice, image: Tensor, unit: Tensor, before: Tensor, order: int
) -> TrackedUpdate:
    """An update whose inverse is corrected: the columns J of a `part`, from `image` = A' X'_J; or, where more drift is
    found than rounding explains, all of them. Where the residual, or the one `before`, is loose, log|det| and sign are
    computed afresh. `residual` is that of the probes; `unit` is max |A'| |X'| 1."""
    rounded, inverse, sign, logabsdet = update.base, update.inverse, update.sign, update.logabsdet
    assert rounded is not None and inverse is not None
    nonsingular, off = update.logabsdet_change.isfinite(), part_residual(image, part)
    residual = torch.maximum(update.residual, off.abs().amax((-2, -1)))
    rounding = rounding_of(rounded) * unit
    drifted = ~(residual <= rounding) & nonsingular & unit.isfinite()
    correct_columns(inverse, part, off, ~drifted & (residual <= CONVERGENT))
    loose = ~(torch.maximum(residual, before) <= LOOSE) & nonsingular
    if not bool((drifted | loose).any()):
        return replace(update, inverse=inverse, residual=residual)
    if bool(drifted.any()):
        inverse = corrected(rounded, inverse, order, rounding, drifted)
        residual = linalg.probe_residual(rounded, inverse, probes_of(rounded))[0]
    loose = ~(torch.maximum(residual, before) <= LOOSE) & nonsingular
    if bool(loose.any()):
        exact_sign, exact_logabsdet = linalg.unbatched(torch.linalg.slogdet, rounded.double())
        sign, logabsdet = torch.where(loose, exact_sign, sign), torch.where(loose, exact_logabsdet, logabsdet)
    return replace(update, inverse=inverse, sign=sign, logabsdet=logabsdet, residual=residual)
