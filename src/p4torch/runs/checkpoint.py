"""Files that are either whole or not there, and checkpoints that hold plain numbers, strings and tensors only."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from p4torch.errors import CheckpointError
from p4torch.runs.digest import digest

#: Under which name a checkpoint holds the digest of all else.
DIGEST = "sha256"
#: What the operating system says where there is no room: on the disk, of the user's share, for a file.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in _FULL:
            raise _unwritten(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Name the file and the reason where something cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's archive writer has no errno
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: Exception) -> CheckpointError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):  # torch raises its own error behind that of the file
        cause = cause.__context__
    reason = getattr(cause, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"`{path}` cannot be written ({reason}); the last checkpoint is whole: make room, resume")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all, with a digest of what it holds.

    Raises:
        CheckpointError: it cannot be written; a full disk, say.
    """
    state = {**state, DIGEST: digest({key: value for key, value in state.items() if key != DIGEST})}
    with written(path):
        write_whole(path, partial(_save, state))


def _save(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # torch's own files do not say why they cannot be written
        torch.save(state, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint. Nothing in the file is executed (`weights_only=True`). Its digest is checked, if it has one:
    earlier versions left none.

    Raises:
        CheckpointError: not a file of ours, or broken: not a bit may differ from what was saved.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a flipped bit leads anywhere in the unpickler
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"`{path}` must be a checkpoint of tensors and plain values: {reason[0]}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"`{path}` must hold a dict, got {type(state).__name__}")
    saved = state.pop(DIGEST, None)
    if saved is not None and saved != digest(state):
        raise CheckpointError(f"`{path}` must hold what was saved, got other bits: the file is damaged, use another")
    return state
