"""Errors and warnings of p4torch. Every message names the argument, what was expected and what came."""

from __future__ import annotations

import sys
import warnings


class P4Error(Exception):
    """Base class of all errors that p4torch raises on purpose."""


class ArgumentError(P4Error, ValueError):
    """An argument has a value that cannot be used."""

    @classmethod
    def of(cls, argument: str, expected: str, came: object) -> ArgumentError:
        """The standard wording: "`rank` must be an integer >= 1, got 0"."""
        return cls(f"`{argument}` must be {expected}, got {came}")


class OptimizerError(P4Error, ValueError):
    """An optimizer does not hold what a merge schedule needs."""


class CheckpointError(P4Error, ValueError):
    """A checkpoint does not fit the model, or cannot be read."""


class ProjectionWarning(UserWarning):
    """A tensor did not lie in the feasible set and was projected onto it."""


class PropertyWarning(UserWarning):
    """A property holds or trains less than it seems to: entries that never move, a bias beside an equivariant weight, a
    matrix too large for its dtype."""


class StallWarning(UserWarning):
    """A perturbed weight does not train as it should: merges are refused, there is no gradient, or steps explode."""


class RecoveryWarning(UserWarning):
    """Non-finite parameters were found and replaced."""


def warn_caller(message: str, category: type[Warning]) -> None:
    """A warning at the line that called into torch or this package, however deep it comes from."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] in ("p4torch", "torch")
