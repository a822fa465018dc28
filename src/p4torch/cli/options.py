"""What the commands share: options as text, choices, packages that must be there."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from p4torch.errors import ArgumentError, P4Error

INSTALL = 'this command needs more than torch: pip install "p4torch[{extras}]"'


def names(text: str | None) -> tuple[str, ...] | None:
    """Out of a list with commas; None for no list."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def integers(text: str | None, argument: str = "seeds") -> tuple[int, ...] | None:
    """The same of integers, or an ArgumentError."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ArgumentError.of(argument, "integers with commas between them", repr(text)) from error


def numbers(text: str | None, argument: str = "lr") -> tuple[float, ...] | None:
    """The same of numbers, or an ArgumentError."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ArgumentError.of(argument, "numbers with commas between them", repr(text)) from error


def require(*packages: str, extras: str = "experiments") -> None:
    """Raises P4Error if a package of the extra is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise P4Error(f"{INSTALL.format(extras=extras)} (missing: {', '.join(missing)})")


def require_molecules() -> None:
    """Raises P4Error if a package that molecules need is missing."""
    require("matplotlib", "mdtraj", "openmm", "pymbar", "rich", extras="experiments,molecules")


def one_of(*values: str, help: str) -> Any:
    """An option with its values in the help and in completion. Others are refused further down, with our words."""
    return typer.Option(help=help, metavar=f"[{'|'.join(values)}]", autocompletion=_starting(values, commas=False))


def some_of(*values: str, help: str) -> Any:
    """The same of a list with commas, which may hold others, too."""
    return typer.Option(help=f"{help}: {', '.join(values)}.", autocompletion=_starting(values, commas=True))


def _starting(values: tuple[str, ...], *, commas: bool) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if commas else ("", "", incomplete)
        return [before + comma + value for value in values if value.startswith(last)]

    return complete


#: Of every command that runs for a while.
VERBOSE = Annotated[
    bool, typer.Option("--verbose", "-v", help="Versions and threads first; where an error comes from.")
]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but errors.")]
DRY_RUN = Annotated[
    bool, typer.Option("--dry-run", help="Measure for some seconds, tell time, memory and disk, and write nothing.")
]
