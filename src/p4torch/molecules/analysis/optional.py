"""Libraries that come with the extras."""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from types import ModuleType

from p4torch.errors import P4Error


def optional(module: str, extra: str) -> ModuleType:
    """Import a module that an extra brings, without what it logs and warns about while it is imported.

    Raises:
        P4Error: it is not installed.
    """
    logger = logging.getLogger(module.partition(".")[0])
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ModuleNotFoundError as error:
        raise P4Error(f'this needs {error.name}: pip install "p4torch[{extra}]"') from error
    finally:
        logger.setLevel(level)
