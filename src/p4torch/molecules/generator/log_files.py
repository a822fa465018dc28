"""What a training writes beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
