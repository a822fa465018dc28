"""What every way of simulating has in common."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openmm

from p4torch._options import check_integer, check_number
from p4torch.molecules.simulation.dynamics import Thermostat
from p4torch.molecules.simulation.parts import Part, Start
from p4torch.molecules.system import MolecularSystem
from p4torch.runs.pool import Row

#: Runs that differ in their seed share none of these numbers.
_PARTS_OF_A_RUN = 1000
_SEEDS = 20_000
#: The least positive number of full precision.
_LEAST = sys.float_info.min

#: Simulates parts in processes; their rows, in the order in which they end.
Parts = Callable[[Sequence[Part]], list[Row]]


class Method(ABC):
    """A way to sample a molecule's Boltzmann distribution, with its settings."""

    @property
    @abstractmethod
    def records(self) -> int:
        """Frames that it will leave on the disk."""

    @property
    @abstractmethod
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """Time steps of the parts of each stage; parts of a stage run side by side, stages one after another."""

    @abstractmethod
    def thermostat(self, system: MolecularSystem) -> Thermostat:
        """Of the dynamics, at the system's temperature."""

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


def check_seed(settings: object) -> None:
    """Makes `seed` an int. Raises ArgumentError."""
    set_checked(settings, seed=check_integer("seed", vars(settings)["seed"], 0, _SEEDS - 1))


def check_counts(settings: object, least: int, *names: str) -> None:
    """Makes ints of these settings. Raises ArgumentError for one that is no integer, or smaller than `least`."""
    set_checked(settings, **{name: check_integer(name, getattr(settings, name), least) for name in names})


def check_positive(settings: object, *names: str) -> None:
    """Makes Python's numbers of these settings. Raises ArgumentError for one that is not positive and finite."""
    set_checked(settings, **{name: positive(name, getattr(settings, name)) for name in names})


def positive(name: str, value: Any) -> float:
    """Python's number. Raises ArgumentError for one that is not positive and finite."""
    return check_number(name, value, _LEAST, "a number > 0")


def set_checked(settings: object, **values: Any) -> None:
    """Put values into settings that are frozen."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)
