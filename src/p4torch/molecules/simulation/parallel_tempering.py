"""Parallel tempering of a molecule: frames at several temperatures, without bias and without weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from p4torch.errors import ArgumentError
from p4torch.molecules.simulation.data import save_part
from p4torch.molecules.simulation.dynamics import Thermostat
from p4torch.molecules.simulation.ladder import Ladder, geometric
from p4torch.molecules.simulation.method import (
    Method,
    Parts,
    check_counts,
    check_positive,
    check_seed,
    seed_of,
    start_of,
)
from p4torch.molecules.simulation.store import Store
from p4torch.molecules.system import MolecularSystem
from p4torch.runs.pool import Row


@dataclass(frozen=True)
class ParallelTempering(Method):
    """Several ladders of replicas, the lowest at the system's temperature.

    Args:
        highest: temperature, in K.
        replicas: of each ladder, at temperatures of equal ratios.
        ladders: independent of each other.
        nanoseconds: of each replica.
        exchange_ps: between two exchanges; each is followed by a frame of every temperature.
        equilibration_ns: of each replica, not kept.
        friction, step_fs, platform: of the dynamics, as in `Thermostat`.
        seed: of all random numbers.

    Raises:
        ArgumentError: numbers out of range.
    """

    highest: float = 600.0
    replicas: int = 5
    ladders: int = 2
    nanoseconds: float = 8.0
    exchange_ps: float = 0.5
    equilibration_ns: float = 0.1
    friction: float = 1.0
    step_fs: float = 2.0
    platform: str = "Reference"
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, 2, "replicas")
        check_counts(self, 1, "ladders")
        check_positive(self, "highest", "nanoseconds", "exchange_ps", "equilibration_ns", "friction", "step_fs")
        check_seed(self)

    @property
    def every(self) -> int:
        """Time steps between two exchanges."""
        return max(1, round(self.exchange_ps * 1e3 / self.step_fs))

    @property
    def records(self) -> int:
        return self.ladders * self.replicas * self._exchanges(self.nanoseconds)

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        exchanges = self._exchanges(self.equilibration_ns) + self._exchanges(self.nanoseconds)
        return ((self.replicas * exchanges * self.every,) * self.ladders,)

    def thermostat(self, system: MolecularSystem) -> Thermostat:
        return Thermostat(system.temperature, self.friction, self.step_fs, self.platform)

    def short(self) -> ParallelTempering:
        return replace(self, nanoseconds=0.005, equilibration_ns=0.001)

    def fields(self, system: MolecularSystem) -> dict[str, Any]:
        return {"method": "tempered", "temperatures": list(self.temperatures(system)), **vars(self)}

    def temperatures(self, system: MolecularSystem) -> tuple[float, ...]:
        """In K, ascending."""
        if self.highest <= system.temperature:
            raise ArgumentError.of("highest", f"above the {system.temperature:g} K of the system", self.highest)
        return geometric(system.temperature, self.highest, self.replicas)

    def run(self, system: MolecularSystem, out: Path, simulate: Parts) -> list[Row]:
        temperatures = self.temperatures(system)
        start = start_of(system, self.thermostat(system))
        ladders = [
            Ladder(
                f"ladder {index + 1}",
                start,
                temperatures,
                seed_of(self.seed, index),
                self._exchanges(self.equilibration_ns),
                self._exchanges(self.nanoseconds),
                self.every,
                out / "ladders" / str(index),
            )
            for index in range(self.ladders)
        ]
        rows = simulate(ladders)
        stores = [Store(ladder.folder, system.atoms, self.replicas) for ladder in ladders]
        for k, temperature in enumerate(temperatures):
            energies = [store.energies(k) for store in stores]
            trajectory_ids = np.repeat(np.arange(self.ladders), [len(part) for part in energies])
            frames = (np.array(store.frames(k)) for store in stores)
            weights = np.ones(len(trajectory_ids))
            save_part(
                out / part_name(temperature), temperature, frames, weights, np.concatenate(energies), trajectory_ids
            )
        return rows

    def _exchanges(self, nanoseconds: float) -> int:
        return max(1, round(nanoseconds * 1e6 / self.step_fs / self.every))


def part_name(temperature: float) -> str:
    """The folder of a temperature's frames."""
    return f"{temperature:g}K"
