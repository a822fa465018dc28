"""What one process simulates: a run that finds a bias, or a walker under the frozen bias."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from p4torch.molecules.simulation.bias import TorsionBias
from p4torch.molecules.simulation.dynamics import Dynamics, SimulationError, Thermostat
from p4torch.molecules.simulation.store import Store
from p4torch.molecules.torsion_names import Torsion
from p4torch.runs.pool import Progress, Report, Row

#: Time steps between two looks at the torsions while the bias is found.
_LOOK = 25
#: Updates at full strength; after them the gain falls like 1/n, and their noise averages out.
_FULL_UPDATES = 4
#: Frames between two checkpoints.
CHUNK = 500


@dataclass(frozen=True, eq=False)
class Start:
    """What every part begins with: the system as XML, positions in nm, the thermostat."""

    system: str
    positions: Tensor
    thermostat: Thermostat

    @property
    def kT(self) -> float:
        """In kJ/mol."""
        return self.thermostat.kT


@dataclass(frozen=True, eq=False)
class Adaptation:
    """A run that finds the bias: `rounds` rounds, and an update of the bias after each."""

    title: str
    start: Start
    torsions: tuple[Torsion, ...]
    seed: int
    rounds: int
    steps: int

    def run(self, report: Report[Progress]) -> Row | None:
        """The coefficients that it ends with."""
        bias = TorsionBias.zero(self.torsions)
        dynamics = Dynamics(self.start.system, self.start.positions, self.start.thermostat, self.seed, bias)
        looks = max(1, self.steps // self.rounds // _LOOK)
        for done in range(self.rounds):
            angles = bias.angles(dynamics.sampled(looks, _LOOK))
            bias = bias.flattened(angles, self.start.kT, gain=min(1.0, _FULL_UPDATES / (done + 1)))
            dynamics.set_bias(bias)
            if report(Progress((done + 1) * looks * _LOOK, f"update {done + 1} of {self.rounds}")):
                return None
        return {"coefficients": bias.coefficients.tolist()}


@dataclass(frozen=True, eq=False)
class Walker:
    """A trajectory of `frames` frames, `every` time steps apart, after `equilibration` steps; kept in `folder`."""

    title: str
    start: Start
    bias: TorsionBias | None
    seed: int
    equilibration: int
    frames: int
    every: int
    folder: Path

    @property
    def steps(self) -> int:
        """All time steps."""
        return self.equilibration + self.frames * self.every

    def run(self, report: Report[Progress]) -> Row | None:
        """Goes on from the last checkpoint in the folder."""
        store = Store(self.folder, len(self.start.positions))
        done, state = store.resume()
        started = time.monotonic()
        if done == self.frames:
            return {"frames": done, "seconds": 0.0}
        dynamics = Dynamics(self.start.system, self.start.positions, self.start.thermostat, self.seed, self.bias)
        if state is None:
            dynamics.advance(self.equilibration)
        else:
            dynamics.load(state["context"])
        while done < self.frames:
            count = min(CHUNK, self.frames - done)
            frames, energies = zip(*dynamics.frames(count, self.every), strict=True)
            if not np.isfinite(energies).all():
                raise SimulationError(f"{self.title}: the energy of frame {done + _first_bad(energies)} is not finite")
            done += count
            store.append(np.stack(frames), np.array(energies), {"context": dynamics.save()}, done)
            progress = Progress(self.equilibration + done * self.every, f"mean energy {np.mean(energies):.1f} kJ/mol")
            if report(progress) and done < self.frames:
                return None
        return {"frames": done, "seconds": time.monotonic() - started}


class Part(Protocol):
    """What one process simulates."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def steps(self) -> int:
        """Time steps, of each replica."""

    def run(self, report: Report[Progress]) -> Row | None:
        """Simulate; a row, or None if it was asked to stop and has left a checkpoint."""


def run_part(part: Part, report: Report[Progress]) -> Row | None:
    """In a process of its own."""
    return part.run(report)


def _first_bad(energies: tuple[float, ...]) -> int:
    return int(np.flatnonzero(~np.isfinite(energies))[0])
