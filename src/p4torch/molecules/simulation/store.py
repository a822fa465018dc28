"""Frames of a growing trajectory on disk: appended as they come, cut back to the last checkpoint on a resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from p4torch.errors import CheckpointError
from p4torch.runs.checkpoint import load_checkpoint, save_checkpoint, written

State = dict[str, Any]


class Store:
    """Raw files in `folder`: `frames.raw` (float32, nm), `energies.raw` (float64, kJ/mol) and `state.pt`.

    `state.pt` counts the frames that belong to the state it holds; whatever was appended after it does not count.
    A record is one frame of each of `replicas` replicas.
    """

    def __init__(self, folder: Path, atoms: int, replicas: int = 1) -> None:
        self.atoms, self.replicas = atoms, replicas
        folder.mkdir(parents=True, exist_ok=True)
        self._frames, self._energies, self._state = (folder / n for n in ("frames.raw", "energies.raw", "state.pt"))

    def resume(self) -> tuple[int, State | None]:
        """The number of records that are safe, and the state to go on from (None: from the start)."""
        count, state = 0, None
        if self._state.exists():
            saved = load_checkpoint(self._state)
            count, state = int(saved["count"]), saved["state"]
        for path, size in ((self._frames, 12 * self.atoms), (self._energies, 8)):
            path.touch()
            if path.stat().st_size < count * self.replicas * size:
                raise CheckpointError(f"`{path}` must hold {count} records, as the checkpoint says, and is shorter")
            os.truncate(path, count * self.replicas * size)
        return count, state

    def append(self, frames: np.ndarray, energies: np.ndarray, state: State, count: int) -> None:
        """Add records, then the checkpoint that makes them count: `count` in all."""
        for path, values in ((self._frames, frames.astype(np.float32)), (self._energies, energies.astype(np.float64))):
            with written(path), path.open("ab") as file:
                file.write(values.tobytes())
                file.flush()
                os.fsync(file.fileno())
        save_checkpoint(self._state, {"count": count, "state": state})

    def frames(self, replica: int = 0) -> np.ndarray:
        """`(records, atoms, 3)` in nm, read as they are used."""
        return np.memmap(self._frames, np.float32, "r").reshape(-1, self.replicas, self.atoms, 3)[:, replica]

    def energies(self, replica: int = 0) -> np.ndarray:
        """`(records,)`, in kJ/mol."""
        return np.fromfile(self._energies, np.float64).reshape(-1, self.replicas)[:, replica]
