"""A run: a bias is found and frozen, walkers go on under it, and their frames become reference data."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from openmm import app
from rich.console import Console
from torch import Tensor

from p4torch.display import display
from p4torch.errors import ArgumentError
from p4torch.jobs import Pool, Row
from p4torch.molecules.simulation.bias import TorsionBias
from p4torch.molecules.simulation.data import PARTS, save_part
from p4torch.molecules.simulation.parts import Adaptation, Progress, Start, Walker, run_part
from p4torch.molecules.simulation.settings import Settings
from p4torch.molecules.simulation.store import Store
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.torsion_names import Torsion, default_torsions, parse_torsions, torsion_label
from p4torch.training.folder import prepare, read_json, write_json
from p4torch.training.provenance import provenance

#: Frames that are read, weighed and written at a time.
_PIECE = 10_000
#: Of the disk, for everything beside frames.
_SPARE_BYTES = 50_000_000


@dataclass(frozen=True)
class Run:
    """A simulation in a folder.

    Args:
        system: the molecule.
        settings: for how long, under which bias.
        out: the folder; made if it does not exist.
        workers: processes at a time.
    """

    system: MolecularSystem
    settings: Settings
    out: Path
    workers: int

    @property
    def torsions(self) -> tuple[Torsion, ...]:
        """That the bias acts on."""
        topology = self.system.topology
        named = self.settings.torsions
        return parse_torsions(topology, named) if named else default_torsions(topology)

    @property
    def start(self) -> Start:
        """Of every part."""
        system = openmm.XmlSerializer.serialize(self.system.openmm_system)
        return Start(system, self.system.positions, self.settings.thermostat(self.system.temperature))

    def fields(self) -> dict[str, Any]:
        """For `config.json`: everything that the numbers depend on."""
        return {
            "kind": "simulation",
            "molecule": repr(self.system),
            "fingerprint": self.system.fingerprint,
            "temperature": self.system.temperature,
            "atoms": self.system.atoms,
            "biased": [torsion_label(self.system.topology, torsion) for torsion in self.torsions],
            **self.settings.fields(),
        }

    def check_disk(self) -> None:
        """Raises ArgumentError if the frames will not fit."""
        place = next(path for path in (self.out, *self.out.absolute().parents) if path.exists())
        frame = 12 * self.system.atoms + 8
        needed = 2 * self.settings.walkers * self.settings.frames * frame + _SPARE_BYTES
        free = shutil.disk_usage(place).free
        if free < needed:
            raise ArgumentError.of("out", f"on a disk with {needed / 1e6:.0f} MB free", f"{free / 1e6:.0f} MB")

    def execute(self, console: Console, *, resume: bool = False) -> None:
        """Simulate, and leave the data in the folder.

        Raises:
            ArgumentError, CheckpointError: the folder or the disk cannot be used.
            Interrupted: after Ctrl-C, at a checkpoint.
            JobError: a simulation has failed.
        """
        fields = self.fields()
        self.check_disk()
        prepare(self.out, fields, resume=resume)
        record = provenance(seed=self.settings.seed, workers=self.workers, openmm=openmm.__version__)
        started = time.monotonic()
        self._describe()
        bias = self._bias(console)
        rows = self._walk(bias, console)
        self._collect(bias)
        seconds = {"wall_seconds": time.monotonic() - started, "walker_seconds": [row["seconds"] for row in rows]}
        write_json(self.out / "provenance.json", {**record, **seconds})

    def _describe(self) -> None:
        """The molecule, for whoever opens the frames."""
        with (self.out / "topology.pdb").open("w", encoding="utf-8") as file:
            app.PDBFile.writeFile(self.system.topology, self.system.positions.numpy() * 10, file)
        xml = openmm.XmlSerializer.serialize(self.system.openmm_system)
        (self.out / "system.xml").write_text(xml, encoding="utf-8")

    def _bias(self, console: Console) -> TorsionBias:
        """Found by several runs, averaged, softened and kept; or as it was kept."""
        path, settings, torsions = self.out / "bias.json", self.settings, self.torsions
        if not path.exists():
            parts = [
                Adaptation(
                    f"bias {index + 1}",
                    self.start,
                    torsions,
                    settings.seed_of(index),
                    settings.rounds,
                    settings.time_steps(settings.adaptation_ns),
                )
                for index in range(settings.adapters)
            ]
            rows = self._pool(parts, console)
            found = torch.tensor([row["coefficients"] for row in rows], dtype=torch.float64)
            bias = TorsionBias(torsions, found.mean(0)).softened(self.system.kT, settings.ess)
            write_json(path, {"torsions": torsions, "found": found.tolist(), "kept": bias.coefficients.tolist()})
        return TorsionBias(torsions, torch.tensor(read_json(path)["kept"], dtype=torch.float64))

    def _walk(self, bias: TorsionBias, console: Console) -> list[Row]:
        settings = self.settings
        walkers = [
            Walker(
                f"walker {index + 1}",
                self.start,
                bias,
                settings.seed_of(settings.adapters + index),
                settings.time_steps(settings.equilibration_ns),
                settings.frames,
                settings.every,
                self._folder(index),
            )
            for index in range(settings.walkers)
        ]
        return self._pool(walkers, console)

    def _pool(self, parts: Sequence[Adaptation | Walker], console: Console) -> list[Row]:
        with display(parts, console, _result) as shown:
            pool: Pool[Adaptation | Walker, Progress] = Pool(min(self.workers, len(parts)), run_part, shown)
            return pool.run(parts)

    def _collect(self, bias: TorsionBias) -> None:
        """Walkers' frames, weighed, become the two parts."""
        kept = self.settings.walkers - self.settings.held_out
        for part, indices in zip(PARTS, (range(kept), range(kept, self.settings.walkers)), strict=True):
            stores = [Store(self._folder(index), self.system.atoms) for index in indices]
            if not stores:
                continue
            energy = torch.cat([bias.energy(bias.angles(frames)) for frames in _pieces(stores)])
            weights = ((energy - energy.max()) / self.system.kT).exp().numpy()
            energies = np.concatenate([store.energies() for store in stores])
            walkers = np.repeat(np.array(indices, dtype=np.int64), [len(store.energies()) for store in stores])
            frames = (piece.numpy() for piece in _pieces(stores))
            save_part(self.out / part, frames, weights, energies, walkers)

    def _folder(self, index: int) -> Path:
        return self.out / "walkers" / str(index)


def _pieces(stores: Sequence[Store]) -> Iterator[Tensor]:
    for store in stores:
        frames = store.frames()
        for first in range(0, len(frames), _PIECE):
            yield torch.from_numpy(np.array(frames[first : first + _PIECE]))


def _result(part: Adaptation | Walker, row: Row) -> str:
    return f"{part.title}: done" if "frames" not in row else f"{part.title}: {row['frames']} frames"
