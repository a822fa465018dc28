"""What is simulated, and for how long."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from p4torch.errors import ArgumentError
from p4torch.molecules.simulation.dynamics import Thermostat

_SEEDS = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """A biased simulation of several walkers.

    Args:
        torsions: that the bias acts on, as `parse_torsions` reads them; empty: those of `default_torsions`.
        walkers: independent trajectories; the last `held_out` of them are kept apart.
        nanoseconds: of production, each walker.
        save_ps: between two frames.
        adaptation_ns: of the runs that find the bias, one for each of `adapters`; `rounds` updates in each.
        equilibration_ns: of each walker under the frozen bias, not kept.
        ess: the effective sample size, as a share, that the bias is softened to.
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
        for name in ("walkers", "adapters", "rounds"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ArgumentError.of(name, "an integer >= 1", repr(getattr(self, name)))
        for name in ("nanoseconds", "save_ps", "adaptation_ns", "friction", "step_fs"):
            if not math.isfinite(getattr(self, name)) or getattr(self, name) <= 0:
                raise ArgumentError.of(name, "a number > 0", getattr(self, name))
        if not math.isfinite(self.equilibration_ns) or self.equilibration_ns < 0:
            raise ArgumentError.of("equilibration_ns", "a number >= 0", self.equilibration_ns)
        if not 0 <= self.held_out < self.walkers:
            raise ArgumentError.of("held_out", f"fewer than all {self.walkers} walkers", self.held_out)
        if not 0 < self.ess < 1:
            raise ArgumentError.of("ess", "a share between 0 and 1", self.ess)
        if not 0 <= self.seed < _SEEDS // 1000:
            raise ArgumentError.of("seed", f"an integer from 0 to {_SEEDS // 1000 - 1}", self.seed)

    def thermostat(self, temperature: float) -> Thermostat:
        """Of every walker; temperature in K."""
        return Thermostat(temperature, self.friction, self.step_fs, self.platform)

    @property
    def every(self) -> int:
        """Time steps between two frames."""
        return max(1, round(self.save_ps * 1e3 / self.step_fs))

    @property
    def frames(self) -> int:
        """Of each walker."""
        return max(1, round(self.nanoseconds * 1e6 / self.step_fs / self.every))

    def time_steps(self, nanoseconds: float) -> int:
        """How many make up that time."""
        return round(nanoseconds * 1e6 / self.step_fs)

    def short(self) -> Settings:
        """Seconds of it, to see that everything works."""
        return replace(self, nanoseconds=0.02, adaptation_ns=0.02, equilibration_ns=0.002, rounds=2)

    def seed_of(self, part: int) -> int:
        """Different for each part of a run and for each run: OpenMM takes 0 for "any"."""
        return 1 + self.seed * 1000 + part

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
