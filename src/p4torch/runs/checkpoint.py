"""Files that are either whole or not there, and checkpoints that hold plain numbers, strings and tensors only."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from p4torch.errors import CheckpointError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    write_whole(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint. Nothing in the file is executed (`weights_only=True`).

    Raises:
        CheckpointError: not a file of ours, or broken.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"`{path}` must be a checkpoint of tensors and plain values: {reason[0]}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"`{path}` must hold a dict, got {type(state).__name__}")
    return state
