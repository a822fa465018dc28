"""Functions that run eagerly, also where a compiled region calls them.

Merges and refreshes decide by values and write in place. Inside a region of `torch.compile` that costs recompilations,
and on a CPU the compiler drops writes into float64 scalars: log-determinants would stop following the base.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def eager(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A function that compiled regions leave to call it, by `torch.compiler.disable`. That is imported only if there is
    such a region, since it takes a second."""
    disabled: list[Callable[_Arguments, _Result]] = []

    @wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call
