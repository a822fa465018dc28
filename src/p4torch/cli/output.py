"""What commands print, also on terminals that know few characters."""

from __future__ import annotations

import codecs
import sys
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from p4torch.errors import P4Error

if TYPE_CHECKING:
    from rich.console import Console

#: How characters of our texts are spelled where they cannot be shown.
SPELLED = {
    "Δ": "d",
    "φ": "phi",
    "ψ": "psi",
    "θ": "theta",
    "π": "pi",
    "σ": "sigma",
    "√": "sqrt ",
    "±": "+-",
    "×": "x",
    "·": "*",
    "°": " deg",
    "≤": "<=",
    "≥": ">=",
    "∞": "inf",
    "−": "-",
    "–": "-",
    "—": "-",
    "‖": "||",
    "…": "...",
    "⁻": "-",
    "’": "'",
    "‹": "<",
    "›": ">",
}

_HANDLER = "p4torch.spelled"


def legible() -> None:
    """From now on, what the streams' encoding does not have is spelled, where it was a UnicodeEncodeError."""
    codecs.register_error(_HANDLER, spelled)
    for stream in (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
        if not encoding.startswith("utf") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)


def spelled(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: ASCII for what cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
    if character in SPELLED:
        return SPELLED[character]
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii") or "?"


@contextmanager
def running(*, verbose: bool = False, quiet: bool = False) -> Iterator[Console]:
    """Where a command prints; errors of ours become one line and exit code 2, or what they say.

    Args:
        verbose: versions and threads first; where an error comes from.
        quiet: nothing but errors.
    """
    from rich.console import Console

    console = Console(quiet=quiet)
    try:
        if verbose:
            from p4torch.runs.progress import say
            from p4torch.runs.provenance import described

            say(console, described())
        yield console
    except P4Error as error:
        if verbose:
            traceback.print_exc()
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(getattr(error, "exit_code", 2)) from error
