"""The noise baseline: what 0.004 nm of noise costs in energy, at several temperatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from p4torch.molecules.analysis.noise import noise_baseline
from p4torch.molecules.simulation.dynamics import Thermostat
from p4torch.molecules.simulation.method import (
    Parts,
    check_positive,
    check_seed,
    positive,
    seed_of,
    set_checked,
    start_of,
)
from p4torch.molecules.simulation.parts import Walker
from p4torch.molecules.simulation.run import run_parts
from p4torch.molecules.simulation.store import Store
from p4torch.molecules.system import MolecularSystem
from p4torch.runs.folder import prepare, write_json
from p4torch.runs.runner import count_workers, recorded

_SAVE_STEPS = 100


@dataclass(frozen=True)
class NoiseRun:
    """Plain Langevin dynamics at each temperature (K) for some nanoseconds, then noise of `sigma_nm` on its frames.

    Raises:
        ArgumentError: numbers out of range.
    """

    temperatures: Sequence[float] = (300.0, 600.0, 1000.0)
    sigma_nm: float = 0.004
    nanoseconds: float = 1.0
    equilibration_ns: float = 0.1
    step_fs: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self, "sigma_nm", "nanoseconds", "equilibration_ns", "step_fs")
        check_seed(self)
        set_checked(self, temperatures=tuple(positive("temperature", kelvins) for kelvins in self.temperatures))

    def run(self, system: MolecularSystem, out: Path, simulate: Parts) -> list[dict[str, Any]]:
        """One row for each temperature, energies in kJ/mol and in kT."""
        steps = [round(time * 1e6 / self.step_fs) for time in (self.equilibration_ns, self.nanoseconds)]
        walkers = [
            Walker(
                f"{temperature:g} K",
                start_of(system, Thermostat(temperature, step_fs=self.step_fs)),
                None,
                seed_of(self.seed, index),
                steps[0],
                max(1, steps[1] // _SAVE_STEPS),
                _SAVE_STEPS,
                out / "walkers" / str(index),
            )
            for index, temperature in enumerate(self.temperatures)
        ]
        simulate(walkers)
        return [self._row(system, walker) for walker in walkers]

    def _row(self, system: MolecularSystem, walker: Walker) -> dict[str, Any]:
        frames = torch.from_numpy(np.array(Store(walker.folder, system.atoms).frames())).double()
        temperature = walker.start.thermostat.temperature
        generator = torch.Generator().manual_seed(walker.seed)
        result = noise_baseline(system.potential.energy, frames, self.sigma_nm, temperature, generator)
        energies = {"data_mean": result.data_mean, "noisy_mean": result.noisy_mean, "shift": result.shift}
        return {
            "temperature_K": temperature,
            "frames": len(frames),
            **{f"{name}_kJ_mol": value for name, value in energies.items()},
            **{f"{name}_kT": result.in_kT(value) for name, value in energies.items()},
        }


def measure_noise(
    system: MolecularSystem,
    run: NoiseRun,
    out: Path,
    *,
    workers: int | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Run it in a folder, which gets `noise.json`; its rows.

    Raises:
        ArgumentError, CheckpointError: the folder cannot be used, or fewer than one worker.
    """
    workers, console = count_workers(workers), console or Console()
    fields = {"kind": "noise", "fingerprint": system.fingerprint, **vars(run), "temperatures": list(run.temperatures)}
    prepare(out, fields, resume=resume)
    with recorded(out, workers=workers):
        rows = run.run(system, out, partial(run_parts, workers=workers, console=console))
    write_json(out / "noise.json", rows)
    return rows
