"""Samples as files that other programs read."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.simulation.data import save_array, save_dcd, save_topology
from p4torch.molecules.system import MolecularSystem
from p4torch.runs.checkpoint import write_whole

#: Frames of the trajectory without weights.
RESAMPLED = 10_000


def write_trajectories(folder: Path, system: MolecularSystem, samples: Samples, seed: int = 0) -> None:
    """`topology.pdb`, `samples.dcd` with `weights.npy` (of sum 1) and `energies.npy` (kT), and `resampled.dcd`, frames
    of equal weight; without weights, if none is above zero, there is no `resampled.dcd`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "topology.pdb", partial(save_topology, system))
    write_whole(folder / "samples.dcd", lambda path: save_dcd(path, [samples.frames.numpy()]))
    write_whole(folder / "energies.npy", partial(save_array, samples.energies.numpy()))
    if samples.weighted:
        write_whole(folder / "weights.npy", partial(save_array, samples.weights.numpy()))
        count = min(RESAMPLED, len(samples))
        frames = samples.resample(count, torch.Generator().manual_seed(seed))
        write_whole(folder / "resampled.dcd", lambda path: save_dcd(path, [frames.numpy()]))
