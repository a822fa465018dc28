"""Names that have changed: the old ones raise, and say the new ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


def renamed_keywords(**new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function, or a class's `__init__`, that refuses the former names of its keywords by a TypeError."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in new.keys() & kwargs.keys():
                raise TypeError(f"{function.__qualname__}() has no argument {old!r}: it is called {new[old]!r} now")
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_fields(**new: str) -> Callable[[C], C]:
    """A dataclass that refuses the former names of its fields, as keywords and as attributes."""

    def decorate(kind: C) -> C:
        def former(old: str) -> property:
            def refuse(self: object) -> NoReturn:
                raise AttributeError(f"{kind.__name__!r} has no attribute {old!r}: it is called {new[old]!r} now")

            return property(refuse)

        for old in new:
            setattr(kind, old, former(old))
        setattr(kind, "__init__", renamed_keywords(**new)(getattr(kind, "__init__")))  # noqa: B009, B010
        return kind

    return decorate
