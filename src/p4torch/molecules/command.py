"""What `p4torch molecule ...` does with its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from p4torch.errors import ArgumentError
from p4torch.molecules.estimate import LONG, Cost, simulation_cost
from p4torch.molecules.simulation.data import ReferenceData, save_dcd
from p4torch.molecules.simulation.method import Method
from p4torch.molecules.simulation.noise import NoiseRun, measure_noise
from p4torch.molecules.simulation.parallel_tempering import ParallelTempering
from p4torch.molecules.simulation.run import simulate
from p4torch.molecules.simulation.torsion_flattening import TorsionFlattening
from p4torch.molecules.system import AMBER, MolecularSystem
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.progress import say
from p4torch.runs.runner import count_workers

METHODS: dict[str, type[TorsionFlattening] | type[ParallelTempering]] = {
    "biased": TorsionFlattening,
    "tempered": ParallelTempering,
}


@dataclass(frozen=True)
class Molecule:
    """Which one: a PDB file, or alanine dipeptide; force-field files, or a System as XML; temperature in K."""

    pdb: Path | None = None
    forcefield: tuple[str, ...] | None = None
    system_xml: Path | None = None
    temperature: float = 300.0

    @property
    def physics(self) -> str:
        """What the force field is called: its files."""
        return f"System of {self.system_xml}" if self.system_xml else ", ".join(self.forcefield or AMBER)

    def system(self) -> MolecularSystem:
        """Raises ArgumentError for what cannot be simulated."""
        if self.pdb is None:
            if self.forcefield or self.system_xml:
                raise ArgumentError.of("pdb", "given with --forcefield or --system-xml", "none")
            return MolecularSystem.alanine_dipeptide(self.temperature)
        if self.system_xml is not None:
            if self.forcefield:
                raise ArgumentError.of("forcefield", "left out with --system-xml", ",".join(self.forcefield))
            return MolecularSystem.from_xml(self.system_xml, self.pdb, self.temperature)
        return MolecularSystem.from_pdb(self.pdb, self.forcefield or AMBER, self.temperature)


def make_method(name: str, settings: Mapping[str, Any], *, short: bool) -> Method:
    """The method with the settings that were given; those of another method are refused."""
    if name not in METHODS:
        raise ArgumentError.of("method", " or ".join(METHODS), repr(name))
    kind = METHODS[name]
    given = {key: value for key, value in settings.items() if value is not None}
    known = {field.name for field in fields(kind)}
    foreign = [key for key in given if key not in known]
    if foreign:
        raise ArgumentError.of(foreign[0], f"left out with --method {name}", given[foreign[0]])
    method = kind(**given)
    return method.short() if short else method


def run_simulation(
    molecule: Molecule,
    method: Method,
    out: Path,
    workers: int | None,
    console: Console,
    *,
    resume: bool,
    dry_run: bool = False,
) -> None:
    """Simulate; say where the data are. A dry run says what it would cost."""
    system = molecule.system()
    method.fields(system)  # refuses what does not fit the molecule, before anything is measured
    busy = count_workers(workers)
    if dry_run or not resume:
        announce(console, simulation_cost(system, method, busy), dry_run)
    say(console, repr(system))
    if dry_run:
        return
    simulate(system, method, out, workers=workers, resume=resume, console=console)
    say(console, f"Frames, weights and figures: {out}")
    say(console, f"Summary: {out / 'summary.json'}")


def announce(console: Console, cost: Cost, dry_run: bool) -> None:
    """What a run costs: in a dry run, and before one that takes long."""
    if dry_run:
        say(console, f"Dry run, nothing is written: {cost.text}")
    elif cost.seconds > LONG:
        say(console, f"This takes {cost.text}. Ctrl-C stops it at a checkpoint, --resume goes on.")


def run_resampling(run: Path, part: str, frames: int, seed: int, out: Path, console: Console) -> None:
    """Unweighted frames of a finished run, as DCD."""
    chosen = ReferenceData.load(run, part).resample(frames, torch.Generator().manual_seed(seed))
    if not out.parent.is_dir():
        raise ArgumentError.of("out", "a file in a folder that exists", out)
    write_whole(out, lambda path: save_dcd(path, [chosen.numpy()]))
    say(console, f"{len(chosen)} frames of equal weight: {out}")


def run_noise(
    molecule: Molecule, run: NoiseRun, out: Path, workers: int | None, console: Console, *, resume: bool
) -> None:
    """Measure the noise baseline; print its table."""
    rows = measure_noise(molecule.system(), run, out, workers=workers, resume=resume, console=console)
    for row in rows:
        say(
            console,
            f"{row['temperature_K']:g} K: mean energy {row['data_mean_kJ_mol']:.1f} kJ/mol, with noise "
            f"{row['noisy_mean_kJ_mol']:.1f} kJ/mol: {row['shift_kJ_mol']:.1f} kJ/mol or {row['shift_kT']:.1f} kT more",
        )
    say(console, f"Table: {out / 'noise.json'}")
