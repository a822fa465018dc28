"""Frames of a growing trajectory on disk: appended as they come, cut back to the last checkpoint on a resume."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from p4torch.errors import CheckpointError
from p4torch.training.checkpoint import load_checkpoint, save_checkpoint


class Store:
    """Raw files in `folder`: `frames.raw` (float32, nm), `energies.raw` (float64, kJ/mol) and `state.pt`.

    `state.pt` counts the frames that belong to the state it holds; whatever was appended after it does not count.
    """

    def __init__(self, folder: Path, atoms: int) -> None:
        self.folder, self.atoms = folder, atoms
        folder.mkdir(parents=True, exist_ok=True)
        self._frames, self._energies, self._state = (folder / n for n in ("frames.raw", "energies.raw", "state.pt"))

    def resume(self) -> tuple[int, bytes | None]:
        """The number of frames that are safe, and the state to go on from (None: from the start)."""
        count, state = 0, None
        if self._state.exists():
            saved = load_checkpoint(self._state)
            count, state = int(saved["count"]), bytes(saved["state"].numpy())
        for path, size in ((self._frames, 12 * self.atoms), (self._energies, 8)):
            path.touch()
            if path.stat().st_size < count * size:
                raise CheckpointError(f"`{path}` must hold {count} frames, as the checkpoint says, and is shorter")
            os.truncate(path, count * size)
        return count, state

    def append(self, frames: np.ndarray, energies: np.ndarray, state: bytes, count: int) -> None:
        """Add frames, then the checkpoint that makes them count: `count` in all."""
        for path, values in ((self._frames, frames.astype(np.float32)), (self._energies, energies.astype(np.float64))):
            with path.open("ab") as file:
                file.write(values.tobytes())
                file.flush()
                os.fsync(file.fileno())
        save_checkpoint(self._state, {"count": count, "state": torch.frombuffer(bytearray(state), dtype=torch.uint8)})

    def frames(self) -> np.ndarray:
        """`(frames, atoms, 3)` in nm, read as they are used."""
        return np.memmap(self._frames, np.float32, "r").reshape(-1, self.atoms, 3)

    def energies(self) -> np.ndarray:
        """`(frames,)`, in kJ/mol."""
        return np.fromfile(self._energies, np.float64)
