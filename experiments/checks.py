"""Checks of what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from p4torch.errors import ArgumentError


def check_names(argument: str, got: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> None:
    """Raises ArgumentError for a name that is not known, one that comes twice, or none at all."""
    if not isinstance(got, tuple):
        raise ArgumentError.of(argument, f"names out of {', '.join(known)}", repr(got))
    wrong = [name for name in got if name not in known]
    if wrong or not got or len(set(got)) < len(got):
        raise ArgumentError.of(argument, f"different names out of {', '.join(known)}", ",".join(wrong or got) or "none")


def check_integers(argument: str, got: Any, least: int) -> None:
    """Raises ArgumentError for anything but different integers from `least` to 2³¹ - 1, one or more."""
    values = got if isinstance(got, tuple) else ()
    usable = all(isinstance(value, int) and least <= value < 2**31 for value in values)
    if not values or not usable or len(set(values)) < len(values):
        expected = f"different integers from {least} to 2³¹ - 1"
        raise ArgumentError.of(argument, expected, ",".join(map(str, values)) or "none")


def check_counts(options: object, *names: str) -> None:
    """Raises ArgumentError for an attribute that is no integer >= 1."""
    for name in names:
        value = getattr(options, name)
        if not isinstance(value, int) or value < 1:
            raise ArgumentError.of(name, "an integer >= 1", value)


def check_rate(rate: float | None, where: str = "") -> None:
    """Raises ArgumentError for anything but a positive, finite number."""
    if rate is None or not (math.isfinite(rate) and rate > 0):
        raise ArgumentError.of("lr", f"a positive number {where}".rstrip(), rate)
