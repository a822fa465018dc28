"""A simulation in a folder: checked before it starts, resumable, with its provenance."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import openmm
from rich.console import Console

from p4torch.errors import ArgumentError
from p4torch.molecules.simulation.data import save_topology
from p4torch.molecules.simulation.method import Method
from p4torch.molecules.simulation.parts import Part, run_part
from p4torch.molecules.simulation.summary import summarise
from p4torch.molecules.system import MolecularSystem
from p4torch.runs.folder import prepare
from p4torch.runs.pool import Row
from p4torch.runs.progress import say
from p4torch.runs.runner import count_workers, in_processes, recorded

#: Of the disk, for everything beside frames.
_SPARE_BYTES = 50_000_000


def simulate(
    system: MolecularSystem,
    method: Method,
    out: Path | str,
    *,
    workers: int | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> None:
    """Simulate a molecule, and leave weighted frames in the folder `out`, for `ReferenceData.load`.

    Args:
        workers: processes at a time; as many as cores, if not given.
        resume: go on with the run in the folder, from its last checkpoint.

    Raises:
        ArgumentError, CheckpointError: the folder or the disk cannot be used.
        Interrupted: after Ctrl-C, at a checkpoint.
        JobError: a simulation has failed.
    """
    out, workers, console = Path(out), count_workers(workers), console or Console()
    fields = {
        "kind": "simulation",
        "molecule": repr(system),
        "fingerprint": system.fingerprint,
        "temperature": system.temperature,
        "atoms": system.atoms,
        **method.fields(system),
    }
    _check_disk(out, method.records * (12 * system.atoms + 8))
    prepare(out, fields, resume=resume)
    _describe(system, out)
    with recorded(out, workers=workers, openmm=openmm.__version__) as record:
        record["rows"] = method.run(system, out, partial(run_parts, workers=workers, console=console))
    say(console, summarise(out, system).text)


def run_parts(parts: Sequence[Part], workers: int, console: Console) -> list[Row]:
    """Simulate parts; their rows, in the order in which they end."""
    return in_processes(parts, run_part, _result, workers, console)


def _check_disk(out: Path, frame_bytes: int) -> None:
    """Raises ArgumentError if the frames will not fit, as they grow and as they are handed over."""
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    needed, free = 2 * frame_bytes + _SPARE_BYTES, shutil.disk_usage(place).free
    if free < needed:
        raise ArgumentError.of("out", f"on a disk with {needed / 1e6:.0f} MB free", f"{free / 1e6:.0f} MB")


def _describe(system: MolecularSystem, out: Path) -> None:
    """The molecule, for whoever opens the frames."""
    save_topology(system, out / "topology.pdb")
    (out / "system.xml").write_text(openmm.XmlSerializer.serialize(system.openmm_system), encoding="utf-8")


def _result(part: Part, row: Row) -> str:
    said = [f"{name.replace('_', ' ')} {_number(value)}" for name, value in row.items() if not isinstance(value, list)]
    return f"{part.title}: {', '.join(said) or 'done'}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
