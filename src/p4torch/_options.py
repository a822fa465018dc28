"""Arguments as users give them: numbers, Python's or scalars of numpy's, names, and tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from p4torch.errors import ArgumentError


def check_tensor(name: str, value: object) -> None:
    """Raises ArgumentError for anything but a tensor: an array of numpy's, a list, a number."""
    if not isinstance(value, Tensor):
        kind = type(value)
        raise ArgumentError.of(name, "a tensor (torch.as_tensor makes one)", f"{kind.__module__}.{kind.__qualname__}")


def check_choice(name: str, value: object, choices: Iterable[str], expected: str) -> None:
    """Raises ArgumentError for anything but one of the names."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError.of(name, expected, repr(value))


def is_integer(value: object) -> bool:
    """Whether it is a scalar that counts: an int, or one of numpy's; no truth value, no array."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The integer as an int. Raises ArgumentError for anything else, and for one that is out of range."""
    if not is_integer(value) or value < least or (most is not None and value > most):
        expected = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
        raise ArgumentError.of(name, expected, repr(value))
    return int(value)


def check_number(name: str, value: Any, least: float, expected: str | None = None) -> float:
    """The number as a float (an int stays one). Raises ArgumentError for anything but a finite one from `least` on."""
    if not isinstance(value, Real) or isinstance(value, bool) or not least <= float(value) < math.inf:
        raise ArgumentError.of(name, expected or ("a positive number" if least else "a number >= 0"), repr(value))
    return int(value) if isinstance(value, Integral) else float(value)


def check_indices(name: str, values: Iterable[Any], size: int, least: int = 0) -> list[int]:
    """Different integers from 0 to `size` - 1, at least so many, as ints. Raises ArgumentError for all else."""
    known = list(values) if isinstance(values, Iterable) else [None]
    usable = all(is_integer(value) and 0 <= value < size for value in known) and len({*known}) == len(known)
    if not usable or len(known) < least:
        raise ArgumentError.of(name, f"different integers from 0 to {size - 1}", values if known == [None] else known)
    return [int(value) for value in known]


def refuse_old_names(options: Mapping[str, Any], renamed: Mapping[str, str]) -> None:
    """Raises TypeError for an option that has another name now, which the message says."""
    for old in options.keys() & renamed.keys():
        raise TypeError(f"`{old}` is now `{renamed[old]}`")
