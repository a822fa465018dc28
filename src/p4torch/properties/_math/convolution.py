"""Spectral norms of convolutions, from above: of the map of whole images, not of the kernel as a matrix.

A convolution of stride s maps y_i = Σ_j K_j x_(s i + j). With s i + j = s (i + q) + r its entries of one remainder r
are channels of their own, and on the infinite grid it is, frequency by frequency, a product with

    Ŝ(θ) `(out, in · remainders)`,   Ŝ(θ)_r = Σ_(j of remainder r) K_j e^(-iθ·q_j),   ‖conv‖ = sup_θ ‖Ŝ(θ)‖₂.

On a torus of m points (after the stride) along each axis, those are the frequencies 2π n / m alone, and the maximum
over them is the norm: that of circular padding. Zero padding is a part of both, rows and columns left out, so its norm
is at most theirs. It is also a part of the torus on which a turn around changes the sign: n + 1/2 in place of n.

Where sizes are not known, the supremum is bounded by samples. |uᴴ Ŝ(θ) v| is, along each axis and up to a phase, that
of a function of exponential type D/2 with D = max q: from its maximum on it falls no faster than a cosine. With N
samples

    sup_θ ‖Ŝ(θ)‖₂ <= max_n ‖Ŝ(2π n / N)‖₂ / cos(π D / 2N), a factor for each axis.

Source: Sedghi, Gupta and Long (2019) for circular padding; Pfister and Bresler (2019) and Araujo, Negrevergne,
Chevaleyre and Atif (2021) for samples and for zero padding; Duffin and Schaeffer (1938) for the cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.linalg.reference import reference_gradients, reference_wanted, transformed

#: Samples along an axis, for each unit of D: while training, for a short side of the matrices up to so much, and where
#: a norm is certified once. The factors for two axes: 1.010, 1.040, 1.17; 1.0024.
TRAINING = ((32, 16), (64, 8), (math.inf, 4))
CERTIFYING = 32


@dataclass(frozen=True)
class Convolution:
    """What a kernel `(out, in / groups, *positions)` does.

    Args:
        kernel: shape of the kernel.
        stride, dilation: along each axis. Dilation is for a torus: on the infinite grid, and with zeros around, that of
            stride s and dilation d falls into ones of stride s / gcd(s, d) without any.
        groups: of channels that do not mix.
        torus: points of the torus along each axis, multiples of the strides; None for the infinite grid.
        twisted: whether the map is a part of that on the torus only, so that a turn around may change the sign.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    torus: tuple[int, ...] | None = None
    twisted: bool = False

    @property
    def positions(self) -> int:
        """J."""
        return math.prod(self.kernel[2:])

    @cached_property
    def taps(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """q and the remainder of each position."""
        axes = zip(self.kernel[2:], self.stride, self.dilation, strict=True)
        offsets = [[divmod(dilation * position, stride) for position in range(size)] for size, stride, dilation in axes]
        taps, remainders = ([[pair[part] for pair in axis] for axis in offsets] for part in (0, 1))
        return list(product(*taps)), list(product(*remainders))

    @cached_property
    def short(self) -> int:
        """p, the short side of the matrices Ŝ."""
        return min(self.kernel[0] // self.groups, self.kernel[1] * len({*self.taps[1]}))

    @property
    def rounding(self) -> float:
        """√(p J): ‖conv‖ <= √J ‖K‖_F and ‖K‖_F <= √p ‖conv‖, so that a change of each entry by a share of itself
        changes the norm by at most so many times that share."""
        return (self.short * self.positions) ** 0.5

    @property
    def shifts(self) -> list[tuple[int, ...]]:
        """Along which axes a turn around changes the sign: all choices."""
        axes = len(self.stride)
        return list(product((0, 1), repeat=axes)) if self.twisted else [(0,) * axes]

    def samples(self, oversampling: int) -> tuple[list[int], float]:
        """How many frequencies along each axis, and the factor by which the maximum over them may be too small."""
        if self.torus is not None:
            return [size // stride for size, stride in zip(self.torus, self.stride, strict=True)], 1.0
        degrees = [max(axis) for axis in zip(*self.taps[0], strict=True)]
        counts = [max(1, oversampling * degree) for degree in degrees]
        factors = [1 / math.cos(math.pi * d / (2 * n)) for d, n in zip(degrees, counts, strict=True)]
        return counts, math.prod(factors)

    def symbols(self, kernel: Tensor, counts: list[int], shift: Tensor) -> Tensor:
        """Ŝ at the frequencies, `(groups, frequencies, out, in · remainders)`, of a kernel in float64. Those with a
        negative first coordinate are left out: Ŝ(-θ) is the conjugate."""
        taps, remainders = self.taps
        numbers = [count // 2 + 1 if axis == 0 else count for axis, count in enumerate(counts)]
        options: dict[str, Any] = {"dtype": kernel.dtype, "device": kernel.device}
        angles = [
            (2 * torch.arange(number, **options) + shift[axis]) * (math.pi / count)
            for axis, (number, count) in enumerate(zip(numbers, counts, strict=True))
        ]
        grid = torch.stack(torch.meshgrid(*angles, indexing="ij"), -1).flatten(0, -2)
        phases = grid @ torch.tensor(taps, **options).mT
        kinds = sorted({*remainders})
        which = torch.tensor([[float(kind == each) for each in remainders] for kind in kinds], **options)
        waves = (
            torch.stack([phases.cos(), -phases.sin()])[:, :, None] * which
        )  # (2, frequencies, remainders, positions)
        rows, columns = self.kernel[0] // self.groups, self.kernel[1]
        entries = kernel.reshape(self.groups * rows * columns, self.positions).mT
        parts = (waves.flatten(0, 2) @ entries).reshape(2, len(grid), len(kinds), self.groups, rows, columns)
        return torch.complex(parts[0], parts[1]).permute(2, 0, 3, 1, 4).flatten(-2)

    def norm_above(self, kernel: Tensor, shift: Tensor) -> Tensor:
        """An upper bound of ‖conv‖ `()` in float64, for every step of a training; differentiable. `shift` `(axes,)` is
        one of `shifts`."""
        oversampling = next(count for size, count in TRAINING if self.short <= size)
        return self._norm(linalg.in_double(kernel), shift, oversampling)

    @torch.no_grad()
    def norm_bound(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """The least upper bound of ‖conv‖ that is known, `()` in float64, and the shift that gives it: never more than
        `norm_above` for any shift."""
        exact = linalg.in_double(kernel.detach())
        shifts = torch.tensor(self.shifts, device=kernel.device)
        norms = torch.stack([self.norm_above(exact, shift) for shift in shifts])
        norm = norms.amin()
        if self.torus is None:
            norm = torch.minimum(norm, self._norm(exact, shifts[0], CERTIFYING))
        return norm, shifts[norms.argmin()]

    def _norm(self, exact: Tensor, shift: Tensor, oversampling: int) -> Tensor:
        counts, factor = self.samples(oversampling)
        products = self.positions * (self.short * self.kernel[1] + 1)
        return factor * (1 + 4 * products * torch.finfo(exact.dtype).eps) * largest_norm(self, exact, counts, shift)


def largest_norm(convolution: Convolution, kernel: Tensor, counts: list[int], shift: Tensor) -> Tensor:
    """max_θ ‖Ŝ(θ)‖₂ over the frequencies, `()`; not a number where the kernel is not finite."""
    if transformed():
        return torch.linalg.matrix_norm(convolution.symbols(kernel, counts, shift), ord=2).amax()
    result: Tensor = _Largest.apply(kernel, convolution, counts, shift)  # type: ignore[no-untyped-call]
    return result


class _Largest(torch.autograd.Function):
    """`largest_norm`, by eigenvalues of the Gram matrices. Its gradient is that of the largest singular value, whose
    vectors are computed for one frequency only."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, convolution: Convolution, counts: list[int], shift: Tensor) -> Tensor:
        finite = kernel.isfinite().all()
        size = kernel.abs().amax().clamp_min(torch.finfo(kernel.dtype).tiny)
        scaled = torch.where(finite, kernel / size, 0)
        symbols = convolution.symbols(scaled, counts, shift)
        rows = linalg.short_rows(symbols)
        largest = torch.linalg.eigvalsh(rows @ rows.mH)[..., -1].flatten()
        top = largest.argmax()
        ctx.save_for_backward(kernel, shift, _one(symbols, top), top)
        ctx.convolution, ctx.counts = convolution, counts
        return torch.where(finite, largest.amax().clamp_min(0).sqrt() * size, torch.nan)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> tuple[Tensor | None, ...]:
        kernel, shift, symbol, top = ctx.saved_tensors
        convolution, counts = ctx.convolution, ctx.counts
        if reference_wanted(*directions):
            (gradient,) = reference_gradients(
                lambda value: torch.linalg.matrix_norm(convolution.symbols(value, counts, shift), ord=2).amax(),
                ctx.needs_input_grad[:1],
                (kernel,),
                directions,
            )
            return gradient, None, None, None
        u, _, v = torch.linalg.svd(symbol, full_matrices=False)
        with torch.enable_grad():
            value = torch.zeros_like(kernel).requires_grad_()
            linear = _one(convolution.symbols(value, counts, shift), top)
            norm = (u[:, 0].conj() @ linear @ v[0].conj()).real
        return directions[0] * torch.autograd.grad(norm, value)[0], None, None, None


def _one(symbols: Tensor, index: Tensor) -> Tensor:
    """The symbol at an index `()`, which stays on its device."""
    return symbols.flatten(0, 1).index_select(0, index.reshape(1)).squeeze(0)
