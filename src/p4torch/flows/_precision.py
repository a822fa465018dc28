"""Densities are exact, whatever autocast does around them: flows compute in the dtype of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor, nn

from p4torch import linalg

R = TypeVar("R")
Method = Callable[..., R]


def in_full_precision(method: Method[R]) -> Method[R]:
    """A method of a module, of points and perhaps a context, for which autocast is off. What it has shortened before
    gets the dtype of the parameters, or float32 where there are none.

    A log-density is a sum over many features: in bfloat16, of eight bits, it is off by tenths and more. And a map that
    rounds is not inverted by one that rounds elsewhere.
    """

    @wraps(method)
    def exact(self: nn.Module, x: Tensor, *context: Tensor | None, **named: Tensor | None) -> R:
        if not isinstance(x, Tensor) or not linalg.autocasts(x.device):
            return method(self, x, *context, **named)
        kinds = (value.dtype for value in self.parameters() if value.is_floating_point())
        dtype = next(kinds, linalg.at_least_single(x).dtype if x.is_floating_point() else None)
        rest = [_with_dtype(value, dtype) for value in context]
        with linalg.full_precision(x.device):
            return method(
                self, _with_dtype(x, dtype), *rest, **{name: _with_dtype(value, dtype) for name, value in named.items()}
            )

    return exact


def _with_dtype(value: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() and dtype is not None else value
