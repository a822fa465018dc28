"""MDTraj's plugin for DCD files says on standard output what it has found in them, and has no switch."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_plugins() -> Iterator[None]:
    """What the C library prints meanwhile goes nowhere. Nothing of Python's own may be printed meanwhile."""
    try:
        library = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
        kept = os.dup(1)
    except (AttributeError, OSError):  # no such library, or no standard output
        yield
        return
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        library.fflush(None)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
