"""Densities are exact, whatever autocast does around them: flows compute in the dtype of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor, nn

from p4torch import linalg

R = TypeVar("R")
Method = Callable[[Any, Tensor], R]


def in_full_precision(method: Method[R]) -> Method[R]:
    """A method of a module, of points, for which autocast is off. Points that it has shortened before get the dtype of
    the parameters, or float32 where there are none.

    A log-density is a sum over many features: in bfloat16, of eight bits, it is off by tenths and more. And a map that
    rounds is not inverted by one that rounds elsewhere.
    """

    @wraps(method)
    def exact(self: nn.Module, x: Tensor) -> R:
        if not isinstance(x, Tensor) or not linalg.autocasts(x.device):
            return method(self, x)
        if x.is_floating_point():
            kinds = (value.dtype for value in self.parameters() if value.is_floating_point())
            x = x.to(next(kinds, linalg.at_least_single(x).dtype))
        with linalg.full_precision(x.device):
            return method(self, x)

    return exact
