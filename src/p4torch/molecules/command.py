"""What `p4torch molecule ...` does with its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from p4torch.errors import ArgumentError
from p4torch.molecules.simulation.data import ReferenceData, save_dcd
from p4torch.molecules.simulation.method import Method
from p4torch.molecules.simulation.noise import NoiseRun, measure_noise
from p4torch.molecules.simulation.parallel_tempering import ParallelTempering
from p4torch.molecules.simulation.run import simulate
from p4torch.molecules.simulation.torsion_flattening import TorsionFlattening
from p4torch.molecules.system import AMBER, MolecularSystem
from p4torch.runs.checkpoint import write_whole

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
    molecule: Molecule, method: Method, out: Path, workers: int | None, console: Console, *, resume: bool
) -> None:
    """Simulate; say where the data are."""
    system = molecule.system()
    console.print(f"{system!r}", markup=False, highlight=False, soft_wrap=True)
    simulate(system, method, out, workers=workers, resume=resume, console=console)
    console.print(f"Data, summary.json and figures: {out}", highlight=False, soft_wrap=True)


def run_resampling(run: Path, part: str, frames: int, seed: int, out: Path, console: Console) -> None:
    """Unweighted frames of a finished run, as DCD."""
    chosen = ReferenceData.load(run, part).resample(frames, torch.Generator().manual_seed(seed))
    if not out.parent.is_dir():
        raise ArgumentError.of("out", "a file in a folder that exists", out)
    write_whole(out, lambda path: save_dcd(path, [chosen.numpy()]))
    console.print(f"{len(chosen)} frames of equal weight: {out}", highlight=False, soft_wrap=True)


def run_noise(
    molecule: Molecule, run: NoiseRun, out: Path, workers: int | None, console: Console, *, resume: bool
) -> None:
    """Measure the noise baseline; print its table."""
    rows = measure_noise(molecule.system(), run, out, workers=workers, resume=resume, console=console)
    for row in rows:
        console.print(
            f"{row['temperature_K']:g} K: mean energy {row['data_mean_kJ_mol']:.1f} kJ/mol, with noise "
            f"{row['noisy_mean_kJ_mol']:.1f} kJ/mol: {row['shift_kJ_mol']:.1f} kJ/mol or {row['shift_kT']:.1f} kT more",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Table: {out / 'noise.json'}", highlight=False, soft_wrap=True)
