"""Bijections of single features onto the line, from an interval, positive numbers or whole ones: what data live on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from p4torch._options import check_tensor
from p4torch.errors import ArgumentError
from p4torch.flows.bijection import Bijection, check_dtype


class Supported(Bijection):
    """Maps each feature from its support to the line, `(..., n)`.

    A point outside has density 0: there `forward` returns a log-determinant of -∞ (and some finite z), without looking
    at numbers on the host, so that training steps need not wait for a device. `check_support` looks, and raises.
    """

    #: The support in words, with what to do about other values.
    expected: str

    def check_support(self, x: Tensor, context: Tensor | None = None) -> None:
        """Raises ArgumentError for points outside of the support, with the feature and the first such value."""
        outside = self._outside(x)
        if bool(outside.any()):
            where = tuple(int(index) for index in outside.nonzero()[0])
            count = int(outside.sum())
            got = f"{float(x[where]):g} for feature {where[-1]} ({count} such {'value' if count == 1 else 'values'})"
            raise ArgumentError.of("x", self.expected, got)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_dtype(x)
        outside = self._outside(x)
        z, log_slope = self._onto_line(torch.where(outside, self._inner(x), x))
        return z, log_slope.masked_fill(outside, -math.inf).sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_dtype(z, name="z")
        x, log_slope = self._from_line(z)
        return x, log_slope.sum(-1)

    def _outside(self, x: Tensor) -> Tensor:
        """Which values have density 0; what is not a number is left to spread."""
        raise NotImplementedError

    def _inner(self, x: Tensor) -> Tensor:
        """Some value inside, which broadcasts to x."""
        return x.new_ones(())

    def _onto_line(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and log dz/dx of values inside."""
        raise NotImplementedError

    def _from_line(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x, inside also where rounding leads to the end of the support, and log dx/dz."""
        raise NotImplementedError


class Logit(Supported):
    """z = log(x - a) - log(b - x) for features in the interval (a, b).

    Its inverse, a + (b - a) / (1 + e⁻ᶻ), is the way from the line into an interval: `Inverse(Logit(a, b))`. Both ends
    have density 0; samples are inside, in every precision.

    Args:
        low, high: a < b, numbers or one for each feature.

    Raises:
        ArgumentError: a >= b, or ends that are not finite.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: float | Sequence[float] = 0.0, high: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        ends = [torch.as_tensor(end, dtype=torch.get_default_dtype()) for end in (low, high)]
        if not all(bool(end.isfinite().all()) and end.dim() < 2 for end in ends):
            raise ArgumentError.of("low, high", "finite numbers, or one for each feature", f"{low}, {high}")
        try:
            first, second = torch.broadcast_tensors(*ends)
        except RuntimeError as error:
            raise ArgumentError.of("low, high", "as many as features", f"{len(ends[0])} and {len(ends[1])}") from error
        if bool((first >= second).any()):
            raise ArgumentError.of("low", "below high", f"{low} and {high}")
        self.register_buffer("low", first.clone())
        self.register_buffer("high", second.clone())
        self.expected = (
            f"inside of the interval from {_ends(self.low)} to {_ends(self.high)} (give a wider one to Logit, or clip)"
        )

    def _outside(self, x: Tensor) -> Tensor:
        return (x <= self.low.to(x.dtype)) | (x >= self.high.to(x.dtype))

    def _inner(self, x: Tensor) -> Tensor:
        return ((self.low + self.high) / 2).to(x.dtype)

    def _onto_line(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.low.to(x.dtype), self.high.to(x.dtype)
        below, above = (x - low).log(), (high - x).log()
        return below - above, (high - low).log() - below - above

    def _from_line(self, z: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.low.to(z.dtype), self.high.to(z.dtype)
        width = high - low
        # from the end that is nearer: there, small distances keep their digits
        x = torch.where(z < 0, low + width * z.sigmoid(), high - width * (-z).sigmoid())
        log_slope = width.log() + torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)
        return torch.clamp(x, _after(low, high), _after(high, low)), log_slope

    def extra_repr(self) -> str:
        return f"low={_ends(self.low)}, high={_ends(self.high)}"


class Log(Supported):
    """z = log x for positive features, best where they span orders of magnitude. Its inverse, eᶻ, is `Inverse(Log())`.

    Samples beyond the range of the dtype become its ends.
    """

    expected = "positive (shift the data, or give such features another bijection)"

    def _outside(self, x: Tensor) -> Tensor:
        return x <= 0

    def _onto_line(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = x.log()
        return z, -z

    def _from_line(self, z: Tensor) -> tuple[Tensor, Tensor]:
        limits = torch.finfo(z.dtype)
        return z.exp().clamp(limits.tiny, limits.max), z


class InverseSoftplus(Supported):
    """z = log(eˣ - 1) for positive features, best where they are of size 1 and the upper tail is not heavy: it leaves
    large values as they are. Its inverse, softplus z = log(1 + eᶻ), is `Inverse(InverseSoftplus())`."""

    expected = "positive (shift the data, or give such features another bijection)"

    def _outside(self, x: Tensor) -> Tensor:
        return x <= 0

    def _onto_line(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logarithm = (-torch.expm1(-x)).log()
        return x + logarithm, -logarithm

    def _from_line(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.logaddexp(z, z.new_zeros(()))
        return x.clamp_min(torch.finfo(z.dtype).tiny), torch.nn.functional.logsigmoid(z)


class Dequantize(Supported):
    """z = x + u with uniform noise u in (0, 1), new in each pass, for features that are whole numbers; back by ⌊z⌋.

    The density of z is that of the line, and log p(z) is on average at most the log-probability of the number
    (Jensen): with it in a flow, `log_prob` is a lower bound of log P(x), and a noisy one. Noise is torch's own
    (`torch.manual_seed`). Integer tensors are taken, too, and become the default dtype, or that of `to(dtype)`.

    Values below 2²² in float32 keep their noise; above, rounding eats it.

    Example, for pixels from 0 to 255: Chain([Dequantize(), Logit(0, 256), ...]).
    """

    expected = "whole numbers (round them, or leave Dequantize out)"
    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # the dtype that integers become

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_tensor("x", x)
        return super().forward(x if x.is_floating_point() or x.is_complex() else x.to(self.zero.dtype))

    def _outside(self, x: Tensor) -> Tensor:
        return x - x.floor() > 0 if x.is_floating_point() else torch.zeros_like(x, dtype=torch.bool)

    def _onto_line(self, x: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.rand_like(x).clamp_min(torch.finfo(x.dtype).eps / 2)
        return torch.minimum(x + noise, _after(x + 1, x)), torch.zeros_like(x)

    def _from_line(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.floor(), torch.zeros_like(z)


def _after(end: Tensor, towards: Tensor) -> Tensor:
    """The next number of the dtype; beside 0, the smallest that has all digits."""
    following = torch.nextafter(end, towards.expand_as(end))
    return torch.where(end == 0, following.sign() * torch.finfo(end.dtype).tiny, following)


def _ends(end: Tensor) -> str:
    return f"{float(end):g}" if end.dim() == 0 else str([float(f"{value:g}") for value in end.tolist()])
