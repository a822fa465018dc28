"""What every way of simulating has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openmm

from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.molecules.simulation.dynamics import Thermostat
from p4torch.molecules.simulation.parts import Part, Start
from p4torch.molecules.system import MolecularSystem
from p4torch.runs.pool import Row

#: Runs that differ in their seed share none of these numbers.
_PARTS_OF_A_RUN = 1000
_SEEDS = 20_000

#: Simulates parts in processes; their rows, in the order in which they end.
Parts = Callable[[Sequence[Part]], list[Row]]


class Method(ABC):
    """A way to sample a molecule's Boltzmann distribution, with its settings."""

    @property
    @abstractmethod
    def records(self) -> int:
        """Frames that it will leave on the disk."""

    @abstractmethod
    def short(self) -> Method:
        """Seconds of it, to see that everything works."""

    @abstractmethod
    def fields(self, system: MolecularSystem) -> dict[str, Any]:
        """For JSON: everything that the numbers depend on."""

    @abstractmethod
    def run(self, system: MolecularSystem, out: Path, simulate: Parts) -> list[Row]:
        """Simulate, and leave weighted frames in folders of `out`."""


def start_of(system: MolecularSystem, thermostat: Thermostat) -> Start:
    """What every part begins with."""
    return Start(openmm.XmlSerializer.serialize(system.openmm_system), system.positions, thermostat)


def seed_of(seed: int, part: int) -> int:
    """Different for each part of a run and for each run; OpenMM takes 0 for "any"."""
    return 1 + seed * _PARTS_OF_A_RUN + part


def check_seed(seed: int) -> None:
    """Raises ArgumentError."""
    check_integer("seed", seed, 0, _SEEDS - 1)


def check_positive(settings: object, *names: str) -> None:
    """Raises ArgumentError for a number that is not positive and finite."""
    for name in names:
        value = getattr(settings, name)
        if not math.isfinite(value) or value <= 0:
            raise ArgumentError.of(name, "a number > 0", value)
