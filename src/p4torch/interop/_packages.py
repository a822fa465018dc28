"""Packages that may not be there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: Distributions on PyPI of packages that are not named like them.
_ON_PYPI = {"pyro": "pyro-ppl"}


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Imports from a package.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        name = _ON_PYPI.get(package, package)
        raise ImportError(f'`p4torch.interop.{package}` needs {name}: pip install "p4torch[flows]"') from error
