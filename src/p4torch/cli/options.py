"""What the commands share: options as text, packages that must be there, errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

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


@contextmanager
def errors() -> Iterator[None]:
    """Errors of ours become one line and exit code 2."""
    try:
        yield
    except P4Error as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(getattr(error, "exit_code", 2)) from error
