"""What a training writes beside its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from p4torch.errors import CheckpointError


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Name the file and the reason where something cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's archive writer has no errno
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(
            f"`{path}` cannot be written ({reason}); the last checkpoint is whole: make room, resume"
        ) from error


def write_board(path: Path, row: dict[str, Any]) -> None:
    """For TensorBoard, where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    with SummaryWriter(str(path), filename_suffix=f".{row['step']}") as writer:
        for name, value in row.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, row["step"])
