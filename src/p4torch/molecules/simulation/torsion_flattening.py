"""A biased simulation: a bias is found and frozen, walkers go on under it, and their frames are reweighted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p4torch._options import check_number, is_integer
from p4torch.errors import ArgumentError
from p4torch.molecules.simulation.bias import TorsionBias
from p4torch.molecules.simulation.data import PARTS, save_part
from p4torch.molecules.simulation.dynamics import Thermostat
from p4torch.molecules.simulation.method import (
    Method,
    Parts,
    check_counts,
    check_positive,
    check_seed,
    seed_of,
    set_checked,
    start_of,
)
from p4torch.molecules.simulation.parts import Adaptation, Walker
from p4torch.molecules.simulation.store import Store
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.torsion_names import Torsion, default_torsions, parse_torsions, torsion_label
from p4torch.runs.folder import read_json, write_json
from p4torch.runs.pool import Row

#: Frames that are read, weighed and written at a time.
_PIECE = 10_000


@dataclass(frozen=True)
class TorsionFlattening(Method):
    """Several walkers under one bias on torsions.

    Args:
        torsions: that the bias acts on, as `parse_torsions` reads them; empty: those of `default_torsions`.
        walkers: independent trajectories; the last `held_out` of them are kept apart.
        nanoseconds: of production, each walker.
        save_ps: between two frames.
        adaptation_ns: of the runs that find the bias, one for each of `adapters`; `rounds` updates in each.
        equilibration_ns: of each walker under the frozen bias, not kept.
        ess: the effective sample size, as a share, that the bias is scaled to.
        friction, step_fs, platform: of the dynamics, as in `Thermostat`.
        seed: of all random numbers.

    Raises:
        ArgumentError: numbers out of range.
    """

    torsions: str = ""
    walkers: int = 4
    held_out: int = 1
    nanoseconds: float = 17.5
    save_ps: float = 0.1
    adaptation_ns: float = 1.5
    adapters: int = 2
    rounds: int = 15
    equilibration_ns: float = 0.2
    ess: float = 0.4
    friction: float = 1.0
    step_fs: float = 2.0
    platform: str = "Reference"
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, 1, "walkers", "adapters", "rounds")
        check_positive(self, "nanoseconds", "save_ps", "adaptation_ns", "friction", "step_fs")
        equilibration_ns = check_number("equilibration_ns", self.equilibration_ns, 0.0)
        if not is_integer(self.held_out) or not 0 <= self.held_out < self.walkers:
            raise ArgumentError.of("held_out", f"fewer than all {self.walkers} walkers", self.held_out)
        if not 0 < self.ess < 1:
            raise ArgumentError.of("ess", "a share between 0 and 1", self.ess)
        set_checked(self, equilibration_ns=equilibration_ns, held_out=int(self.held_out), ess=float(self.ess))
        check_seed(self)

    @property
    def every(self) -> int:
        """Time steps between two frames."""
        return max(1, self._steps(self.save_ps * 1e-3))

    @property
    def frames(self) -> int:
        """Of each walker."""
        return max(1, self._steps(self.nanoseconds) // self.every)

    @property
    def records(self) -> int:
        return self.walkers * self.frames

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        walker = self._steps(self.equilibration_ns) + self.frames * self.every
        return (self._steps(self.adaptation_ns),) * self.adapters, (walker,) * self.walkers

    def short(self) -> TorsionFlattening:
        return replace(self, nanoseconds=0.02, adaptation_ns=0.02, equilibration_ns=0.002, rounds=2)

    def fields(self, system: MolecularSystem) -> dict[str, Any]:
        labels = [torsion_label(system.topology, torsion) for torsion in self._torsions(system)]
        return {"method": "biased", "biased": labels, **vars(self)}

    def run(self, system: MolecularSystem, out: Path, simulate: Parts) -> list[Row]:
        bias = self._bias(system, out, simulate)
        rows = simulate(self._walkers(system, out, bias))
        self._collect(system, out, bias)
        return rows

    def _bias(self, system: MolecularSystem, out: Path, simulate: Parts) -> TorsionBias:
        """Found by several runs, averaged, scaled and kept; or as it was kept."""
        path, torsions, start = out / "bias.json", self._torsions(system), start_of(system, self.thermostat(system))
        if not path.exists():
            steps = self._steps(self.adaptation_ns)
            parts = [
                Adaptation(f"bias {index + 1}", start, torsions, seed_of(self.seed, index), self.rounds, steps)
                for index in range(self.adapters)
            ]
            result = torch.tensor([row["coefficients"] for row in simulate(parts)], dtype=torch.float64)
            bias = TorsionBias(torsions, result.mean(0)).scaled_to_ess(system.kT, self.ess)
            write_json(path, {"torsions": torsions, "found": result.tolist(), "kept": bias.coefficients.tolist()})
        return TorsionBias(torsions, torch.tensor(read_json(path)["kept"], dtype=torch.float64))

    def _walkers(self, system: MolecularSystem, out: Path, bias: TorsionBias) -> list[Walker]:
        start = start_of(system, self.thermostat(system))
        return [
            Walker(
                f"walker {index + 1}",
                start,
                bias,
                seed_of(self.seed, self.adapters + index),
                self._steps(self.equilibration_ns),
                self.frames,
                self.every,
                _folder(out, index),
            )
            for index in range(self.walkers)
        ]

    def _collect(self, system: MolecularSystem, out: Path, bias: TorsionBias) -> None:
        """Walkers' frames, weighed, become the two parts."""
        kept = self.walkers - self.held_out
        for part, indices in zip(PARTS, (range(kept), range(kept, self.walkers)), strict=True):
            stores = [Store(_folder(out, index), system.atoms) for index in indices]
            if not stores:
                continue
            energy = torch.cat([bias.energy(bias.angles(frames)) for frames in _pieces(stores)])
            weights = ((energy - energy.max()) / system.kT).exp().numpy()
            energies = np.concatenate([store.energies() for store in stores])
            trajectory_ids = np.repeat(np.array(indices, dtype=np.int64), [len(store.energies()) for store in stores])
            frames = (piece.numpy() for piece in _pieces(stores))
            save_part(out / part, system.temperature, frames, weights, energies, trajectory_ids)

    def _torsions(self, system: MolecularSystem) -> tuple[Torsion, ...]:
        topology = system.topology
        return parse_torsions(topology, self.torsions) if self.torsions else default_torsions(topology)

    def thermostat(self, system: MolecularSystem) -> Thermostat:
        return Thermostat(system.temperature, self.friction, self.step_fs, self.platform)

    def _steps(self, nanoseconds: float) -> int:
        return round(nanoseconds * 1e6 / self.step_fs)


def _folder(out: Path, index: int) -> Path:
    return out / "walkers" / str(index)


def _pieces(stores: Sequence[Store]) -> Iterator[Tensor]:
    for store in stores:
        frames = store.frames()
        for first in range(0, len(frames), _PIECE):
            yield torch.from_numpy(np.array(frames[first : first + _PIECE]))
