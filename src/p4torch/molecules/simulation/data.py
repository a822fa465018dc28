"""Reference data: weighted frames of a molecule, on disk as DCD, NumPy arrays and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import torch
from mdtraj.formats import DCDTrajectoryFile
from openmm import app
from torch import Tensor

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.molecules.plugin_messages import silent_plugins
from p4torch.molecules.renamed import renamed_fields
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.trajectory import check_trajectory
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import read_json, write_json

#: The parts of a biased run: frames to train on, and frames of other trajectories to test with.
PARTS = ("train", "held_out")

_ANGSTROMS = np.float32(10.0)  # per nm


@renamed_fields(walkers="trajectory_ids")
@dataclass(frozen=True)
class ReferenceData:
    """Weighted frames: averages over the Boltzmann distribution are Σ w f / Σ w.

    Attributes:
        frames: `(n, atoms, 3)` in nm, float32.
        weights: `(n,)`, of mean 1, float64.
        energies: `(n,)` in kJ/mol, float64, without bias.
        trajectory_ids: `(n,)`, the trajectory of each frame; its frames are in the order of time.
        temperature: in K.
    """

    frames: Tensor
    weights: Tensor
    energies: Tensor
    trajectory_ids: Tensor
    temperature: float

    @classmethod
    def load(cls, run: Path | str, part: str = "train", system: MolecularSystem | None = None) -> ReferenceData:
        """What `simulate` left in the folder `run`: "train" or "held_out"; after parallel tempering "300K", "600K", ...

        Args:
            system: if given, the data must be of this molecule with this force field.

        Raises:
            ArgumentError: no such data, or data of another molecule.
            CheckpointError: files that do not belong together.
        """
        folder = Path(run) / part
        if not (folder / "frames.dcd").exists():
            raise ArgumentError.of("run", f"a folder of finished reference data with {part}/frames.dcd", run)
        config = read_json(Path(run) / "config.json")
        if system is not None and config["fingerprint"] != system.fingerprint:
            raise ArgumentError.of("run", f"of {system!r}", f"data of fingerprint {config['fingerprint']}")
        weights, energies, trajectory_ids = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in _FILES)
        with silent_plugins(), DCDTrajectoryFile(str(folder / "frames.dcd")) as file:
            frames = torch.from_numpy(file.read()[0] / _ANGSTROMS)
        if not len(frames) == len(weights) == len(energies) == len(trajectory_ids):
            counts = (
                f"{len(frames)} frames, {len(weights)} weights, {len(energies)} energies, {len(trajectory_ids)} ids"
            )
            raise CheckpointError(f"`{folder}` must hold as many weights as frames, got {counts}")
        return cls(frames, weights, energies, trajectory_ids, float(read_json(folder / "part.json")["temperature"]))

    def __len__(self) -> int:
        return len(self.frames)

    def select(self, chosen: Tensor) -> ReferenceData:
        """Some of the frames, by a mask or by indices; weights as they are."""
        arrays = {name: getattr(self, name)[chosen] for name in ("frames", *_ARRAYS)}
        return replace(self, **arrays)

    @classmethod
    def cat(cls, parts: Sequence[ReferenceData]) -> ReferenceData:
        """Several parts of one distribution, one after another."""
        arrays: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in ("frames", *_ARRAYS)
        }
        return replace(parts[0], **arrays)

    def resample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`(count, atoms, 3)`: frames without weights, each taken as often as its weight says, to within one.

        Systematic resampling: the i-th frame is the one at (i + u) / count of the cumulated weights, one u for all.
        Frames of large weight come more than once; they stay in the order of time.
        """
        if count < 1:
            raise ArgumentError.of("count", "an integer >= 1", count)
        cumulated = self.weights.cumsum(0)
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        places = (torch.arange(count, dtype=torch.float64) + offset) / count * cumulated[-1]
        return self.frames[torch.searchsorted(cumulated, places, right=True).clamp(max=len(self) - 1)]


#: Fields of the data and the names of their files.
_ARRAYS = ("weights", "energies", "trajectory_ids")
_FILES = ("weights", "energies", "walkers")


def save_part(
    folder: Path,
    temperature: float,
    frames: Iterable[np.ndarray],
    weights: np.ndarray,
    energies: np.ndarray,
    trajectory_ids: np.ndarray,
) -> None:
    """Write one part: `frames` come in pieces `(n, atoms, 3)` in nm; `weights` are scaled to mean 1."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "part.json", {"temperature": temperature, "frames": len(weights)})
    arrays = (weights / weights.mean(), energies, trajectory_ids)
    for name, values in zip(_FILES, arrays, strict=True):
        write_whole(folder / f"{name}.npy", partial(save_array, values))
    write_whole(folder / "frames.dcd", lambda path: save_dcd(path, frames))


def save_dcd(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Write frames, in pieces `(n, atoms, 3)` in nm, as MDTraj reads them."""
    with DCDTrajectoryFile(str(path), "w", force_overwrite=True) as file:
        for piece in frames:
            file.write(piece * _ANGSTROMS)


def load_frames(path: Path | str, system: MolecularSystem) -> Tensor:
    """Frames `(n, atoms, 3)` in nm, float32, of a trajectory in any format that MDTraj reads.

    Raises:
        ArgumentError: it cannot be read, is of another molecule, or has frames that are not finite.
    """
    try:
        with silent_plugins():
            trajectory = mdtraj.load(str(path), top=system.mdtraj_topology)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        expected = f"a trajectory of {system.atoms} atoms that MDTraj reads"
        raise ArgumentError.of("path", expected, f"{path} ({str(error).strip().splitlines()[0]})") from error
    return check_trajectory(trajectory, system)


def save_topology(system: MolecularSystem, path: Path) -> None:
    """The molecule as PDB, for whoever opens the frames."""
    with path.open("w", encoding="utf-8") as file:
        app.PDBFile.writeFile(system.topology, system.positions.numpy() * 10, file)


def save_array(values: np.ndarray, path: Path) -> None:
    """As NumPy's own file; under exactly that name, whatever its suffix."""
    with path.open("wb") as file:
        np.save(file, values)
