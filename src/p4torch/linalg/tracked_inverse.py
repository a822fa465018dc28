"""What is tracked beside a base: its inverse, log|det| and sign, kept right through merges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.linalg.in_place import InPlaceUpdate, in_place_update

#: Probe vectors with entries ±1 that look for drift of the inverse at every merge. Each sees all rows.
PROBES = 2

#: An inverse that is off by more than this many times what rounding explains at most is corrected as a whole at once.
#: The more roundings cancel, the less a fresh float32 inverse has of it: at most 0.35 for n = 2, 0.02 for n = 64 and
#: 0.003 for n = 512. With 0.5, random rank-one merges at n = 64 come to it about every 300th time.
DRIFT = 0.5

#: Where the inverse is off by more than this, refined solves and first-order corrections no longer give log|det| to
#: 1e-3 over thousands of merges: it is recomputed from an LU factorisation in float64.
LOOSE = 3e-4

#: The inverse of a matrix up to this size is corrected as a whole at every merge. Of a larger one, this many columns
#: are, or one part of so many: about a sixth of the cost of a merge. Products are fastest with multiples of 8.
WHOLE, PART, PARTS = 64, 16, 32

#: Up to this size every merge takes the closer look, which also counts what rounding A does to log|det A|: updates
#: below half a unit in the last place of A are lost, 1e-5 in a long walk. Beyond, time counts more.
CLOSE = 256

#: The golden ratio without its whole part.
GOLDEN = 0.6180339887498949

#: Columns are corrected where the probes' residual is below this: the step multiplies their error by R.
CONVERGENT = 0.01

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

    @torch.no_grad()
    def correct(self, base: Tensor, order: int) -> None:
        """Where a probe finds more drift than rounding explains: one step of the iterative inversion, or the exact
        inverse where the step would diverge, and log|det| and sign afresh. Elsewhere, or right after a merge that has
        probed and corrected already, nothing."""
        if self.probed == (base._version, self.inverse._version):
            return
        inverse, probes = self.inverse.detach(), _probes(base)
        with linalg.full_precision(base.device):
            residual, unit = linalg.probe_residual(base, inverse, probes)
            rounding = _rounding(base) * unit
            drifted = ~(residual <= rounding)
            if bool(drifted.any()):
                self.inverse.copy_(_corrected(base, inverse, order, rounding, drifted))
                sign, logabsdet = linalg.unbatched(torch.linalg.slogdet, base.double())
                self.logabsdet.copy_(torch.where(drifted, logabsdet, self.logabsdet))
                self.sign.copy_(torch.where(drifted, sign, self.sign))

    def residual(self, base: Tensor, inverse: Tensor) -> Tensor:
        """max|A X p - p| over the probes, `(...)`, in float64."""
        return linalg.probe_residual(base, inverse, _probes(base))[0]

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
        probes, u, v = _probes(base), u.double(), v.double()
        if in_place and base.shape[-1] > CLOSE and base.dtype == torch.float32:
            step = in_place_update(base, self.inverse.detach(), u, v, probes, _part(base.shape[-1], turn))
            if step is not None:
                logabsdet = self.logabsdet + step.change
                return TrackedUpdate(None, None, logabsdet, self.sign * step.sign, step.change, step.residual, step)
        y, z, capacitance, before = linalg.refined_solves(base, self.inverse.detach(), u, v, probes[:, :1])
        change_sign, change = linalg.slogdet(capacitance)
        nonsingular = change.isfinite()
        safe = torch.where(nonsingular[..., None, None], capacitance, linalg.eye_like(capacitance))
        inverse, seen, sums = _inverse_after(self.inverse.detach(), y, linalg.solve(safe, z).mT, probes)
        part = _part(base.shape[-1], turn)
        seen = torch.cat([seen, inverse[..., part].double()], dim=-1)
        rounded, image, unit, trace = _base_after(base, u, v, inverse, seen, sums)
        sign, logabsdet = self.sign * change_sign, self.logabsdet + change + trace

        off = _part_residual(image[..., PROBES:], part)
        residual = torch.maximum((image[..., :PROBES] - probes).abs().amax((-2, -1)), off.abs().amax((-2, -1)))
        rounding = _rounding(base) * unit
        drifted = ~(residual <= rounding) & nonsingular & unit.isfinite()
        _newton_schulz_columns(inverse, part, off, ~drifted & (residual <= CONVERGENT))
        if bool(drifted.any()):
            inverse = _corrected(rounded, inverse, order, rounding, drifted)
            residual = linalg.probe_residual(rounded, inverse, probes)[0]
        loose = ~(torch.maximum(residual, before) <= LOOSE) & nonsingular
        if bool(loose.any()):
            exact_sign, exact_logabsdet = linalg.unbatched(torch.linalg.slogdet, rounded.double())
            sign, logabsdet = torch.where(loose, exact_sign, sign), torch.where(loose, exact_logabsdet, logabsdet)
        return TrackedUpdate(rounded, inverse, logabsdet, sign, change, residual)

    @torch.no_grad()
    def update_to(
        self, base: Tensor, inverse: Tensor, sign: Tensor, change: Tensor, order: int, turn: int, dtype: torch.dtype
    ) -> TrackedUpdate:
        """The update for a new base whose inverse and log|det| are known in float64 up to the rounding that is tracked:
        A' = L A R with X' = R⁻¹ X L⁻¹ and log|det A'| = log|det A| + `change`, say.

        As in `propose`, rounding A' moves log|det| by tr(X' δ), some columns of the inverse are corrected in turn, or
        all of them where a probe finds more drift than rounding explains."""
        probes, rounded, stored = _probes(base), base.to(dtype), inverse.to(dtype)
        trace = (inverse.mT * (rounded.double() - base)).sum((-2, -1))
        signs, logabsdet = self.sign * sign, self.logabsdet + change + trace
        part = _part(base.shape[-1], turn)
        off = _part_residual(rounded.double() @ stored[..., part].double(), part)
        probed, unit = linalg.probe_residual(rounded, stored, probes)
        residual = torch.maximum(probed, off.abs().amax((-2, -1)))
        rounding = _rounding(rounded) * unit
        drifted = ~(residual <= rounding) & change.isfinite() & unit.isfinite()
        _newton_schulz_columns(stored, part, off, ~drifted & (residual <= CONVERGENT))
        if bool(drifted.any()):
            stored = _corrected(rounded, stored, order, rounding, drifted)
            residual = linalg.probe_residual(rounded, stored, probes)[0]
        loose = ~(residual <= LOOSE) & change.isfinite()
        if bool(loose.any()):
            exact_sign, exact_logabsdet = linalg.unbatched(torch.linalg.slogdet, rounded.double())
            signs, logabsdet = torch.where(loose, exact_sign, signs), torch.where(loose, exact_logabsdet, logabsdet)
        return TrackedUpdate(rounded, stored, logabsdet, signs, change, residual)

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
        came = state_dict.get(prefix + "inverse")
        super()._load_from_state_dict(state_dict, prefix, *args)
        if came is None or came.dtype != self.inverse.dtype:
            self._mark_stale()
        elif not self.sign.is_meta:
            self.stale = not bool(self.sign.all())

    def _mark_stale(self) -> None:
        """Be stale, also for those who load what is saved from here: no determinant has the sign 0."""
        self.stale = True
        self.sign = torch.zeros_like(self.sign)


def _probes(base: Tensor) -> Tensor:
    """The probe vectors `(n, PROBES)` in float64, the same every time."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 2, (base.shape[-1], PROBES), generator=generator)
    return drawn.to(base.device, torch.float64) * 2 - 1


def _rounding(base: Tensor) -> float:
    """The residual that rounding explains, in units of |A| |X| 1."""
    return DRIFT * torch.finfo(base.dtype).eps


def _part(n: int, turn: int) -> slice:
    """The columns whose turn it is. Multiples of the golden ratio visit all parts evenly, also where only every second
    or tenth turn comes to a merge."""
    width = n if n <= WHOLE else max(PART, n // PARTS)
    parts = -(-n // width)
    start = int(turn * GOLDEN % 1 * parts) * width
    return slice(start, min(start + width, n))


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


def _part_residual(image: Tensor, part: slice) -> Tensor:
    """R_J = I_J - A X_J from A X_J, for the columns J; in place. All of R for a small matrix, whose part is all."""
    image.neg_()[..., part, :].diagonal(dim1=-2, dim2=-1).add_(1)
    return image


def _newton_schulz_columns(inverse: Tensor, part: slice, off: Tensor, where: Tensor) -> None:
    """X_J <- X_J + X R_J in place for the columns J: a Newton-Schulz step, which leaves R R_J. R_J = I_J - A X_J is in
    float64: in float32 its rounding would be worse than the drift."""
    if bool(where.any()):
        x = linalg.at_least_single(inverse)
        step = linalg.tall_matmul(x, off.to(x.dtype))
        inverse[..., part] += torch.where(where[..., None, None], step, 0).to(inverse.dtype)


def _corrected(base: Tensor, inverse: Tensor, order: int, rounding: Tensor, where: Tensor) -> Tensor:
    """A step of the iterative inversion where its residual R is below 1, the exact inverse elsewhere; in the dtype of
    the inverse, which is kept outside the mask. The step is of order 2 if that leaves less than `rounding`: |R|²."""
    exact, x = base.double(), inverse.double()
    residual = linalg.inversion_residual(exact, x)
    norm = torch.linalg.matrix_norm(residual)
    if bool((norm.square() <= rounding)[where].all()):
        short = linalg.at_least_single(inverse)
        improved = short + short @ residual.to(short.dtype)
    else:
        improved = linalg.hyperpower(exact, x, order)
        diverges = ~(norm < 1)
        if bool((diverges & where).any()):
            inverted, failed = linalg.unbatched(torch.linalg.inv_ex, exact)
            improved = torch.where(diverges[..., None, None], inverted, improved)
            where = where & ~(diverges & (failed != 0))
    return torch.where(where[..., None, None], improved.to(inverse.dtype), inverse)
