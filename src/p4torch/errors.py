"""Errors and warnings of p4torch. Every message names the argument, what was expected and what it got."""

from __future__ import annotations

import sys
import warnings


class P4Error(Exception):
    """Base class of all errors that p4torch raises on purpose."""


class ArgumentError(P4Error, ValueError):
    """An argument has a value that cannot be used."""

    @classmethod
    def of(cls, argument: str, expected: str, got: object) -> ArgumentError:
        """The standard wording: "`rank` must be an integer >= 1, got 0"."""
        return cls(f"`{argument}` must be {expected}, got {got}")


class OptimizerError(P4Error, ValueError):
    """An optimizer does not hold what a merge schedule needs."""


class CheckpointError(P4Error, ValueError):
    """A checkpoint does not fit the model, is damaged, or cannot be read or written."""


class ProjectionWarning(UserWarning):
    """A tensor did not lie in the feasible set and was projected onto it."""


class PropertyWarning(UserWarning):
    """A property holds or trains less than it seems to: entries that never move, a bias beside an equivariant weight, a
    matrix too large for its dtype."""


class StallWarning(UserWarning):
    """A perturbed weight does not train as it should: merges are refused, there is no gradient, or steps explode."""


class RecoveryWarning(UserWarning):
    """Non-finite parameters were found and replaced."""


class ProcessWarning(UserWarning):
    """The processes of a distributed run hold different values of what they share: all take the first one's."""


#: Packages whose code stands between a user's call and a warning.
_INNER = ("p4torch", "torch")


def warn(message: str, category: type[Warning]) -> None:
    """A warning at the line of the user's call: in the first function that is not of this package or of torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INNER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
