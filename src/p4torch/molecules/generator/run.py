"""Models of a molecule in a folder: data, trainings side by side, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import openmm
import torch
from rich.console import Console

import p4torch
from p4torch.errors import ArgumentError, CheckpointError
from p4torch.molecules.estimate import COPIES, Cost, frame_bytes, in_turns, process_bytes, simulation_cost
from p4torch.molecules.generator.estimate import estimate_seconds, untrained
from p4torch.molecules.generator.job import Job, run_job
from p4torch.molecules.generator.summary import Results, summarise
from p4torch.molecules.simulation.data import PARTS
from p4torch.molecules.simulation.method import Method
from p4torch.molecules.simulation.run import simulate
from p4torch.molecules.simulation.torsion_flattening import TorsionFlattening
from p4torch.molecules.system import MolecularSystem
from p4torch.runs.folder import differences, prepare, read_json
from p4torch.runs.pool import Row
from p4torch.runs.progress import duration, say
from p4torch.runs.runner import count_workers, in_processes, recorded
from p4torch.training.measures import parameter_count

MODELS = "models"


@dataclass(frozen=True)
class Request:
    """What to train, and how far.

    Attributes:
        jobs: models with their schedules; their data may be there already.
        simulation: how data are made, if the jobs' folder of data has none.
        strict: refuse frames for training that miss a mode; otherwise say so and go on.
        physics: what the force field is called, for the report.
    """

    system: MolecularSystem
    jobs: tuple[Job, ...]
    simulation: Method = field(default_factory=TorsionFlattening)
    strict: bool = True
    physics: str = "not named"

    def fields(self) -> dict[str, Any]:
        """For config.json: models may come to a folder later, each checks its own schedule."""
        return {
            "kind": "generators",
            "molecule": repr(self.system),
            "fingerprint": self.system.fingerprint,
            "temperature": self.system.temperature,
        }


def train_generators(
    request: Request, out: Path, *, workers: int | None = None, resume: bool = False, console: Console | None = None
) -> list[Row]:
    """Simulate if there are no data; train all models that are not done, side by side; their rows.

    Each model leaves `models/<name>/` with checkpoint, log, weights, samples and `result.json`; all together leave what
    `summarise` writes.

    Raises:
        ArgumentError, CheckpointError: the folder cannot be used.
        Interrupted: after Ctrl-C, at checkpoints.
        JobError: a training has failed.
    """
    workers, console = count_workers(workers), console or Console()
    system, jobs = request.system, request.jobs
    _check_jobs(jobs)
    prepare(out, request.fields(), resume=resume)
    _tell(request, workers, console)
    with recorded(out, workers=workers) as record:
        data = jobs[0].data
        if not has_data(data):
            simulate(system, request.simulation, data, workers=workers, resume=data.exists(), console=console)
        _check_data(request, console)
        rows = {job: row for job in jobs if (row := finished(job, out)) is not None}
        left = [job for job in jobs if job not in rows]
        if left:
            (out / MODELS).mkdir(exist_ok=True)
            in_processes(left, partial(run_job, out / MODELS), _result, workers, console)
    results = Results(jobs[0].reference(), jobs, out / MODELS)
    summarise(results, out, {"Force field": request.physics, **_origin(record)})
    return results.rows


def _origin(record: Mapping[str, Any]) -> dict[str, str]:
    """Version, command and date out of the provenance."""
    revision = f", revision {record['git_revision'][:12]}" if record["git_revision"] else ""
    versions = f"p4torch {p4torch.__version__}{revision}, torch {torch.__version__}, OpenMM {openmm.__version__}"
    return {"Versions": versions, "Command": record["command"], "Started": record["started"]}


def _check_data(request: Request, console: Console) -> None:
    """Refuse data of another temperature, or that miss a mode. They are not kept: workers load their own."""
    reference = request.jobs[0].reference()
    reference.check_temperature()
    try:
        reference.check()
    except ArgumentError as error:
        if request.strict:
            raise
        say(console, f"Good for a check only: {error}")


def finished(job: Job, out: Path) -> Row | None:
    """The row of a job that is done; None also if it was done with the first of the phases that are asked for.

    Raises CheckpointError if it was of another schedule.
    """
    path = out / MODELS / job.name / "result.json"
    if not path.exists():
        return None
    row: Row = read_json(path)
    recorded = row.get("protocol", {})
    if wrong := differences(job.schedule.fields(), job.schedule.adopted(recorded)):
        raise CheckpointError(f"`{path}` must be of the schedule that is asked for, got one with {wrong}")
    return row if len(recorded["stages"]) == len(job.schedule.phases) else None


def cost(request: Request, workers: int) -> Cost:
    """Of the simulation, if there are no data yet, and of all trainings, from a few steps of each phase."""
    _check_jobs(request.jobs)
    system, data = request.system, request.jobs[0].data
    if has_data(data):
        records = [data / part / "part.json" for part in PARTS]
        simulated, count = Cost(0.0, 0.0, 0.0, 1), sum(read_json(path)["frames"] for path in records if path.exists())
    else:
        simulated = simulation_cost(system, request.simulation, workers)
        count = request.simulation.records
    seconds = [round(estimate_seconds(system, job.model, job.schedule)) for job in request.jobs]
    busy = min(workers, len(request.jobs))
    frames, samples = frame_bytes(system, count), max(frame_bytes(system, job.samples) for job in request.jobs)
    memory = (1 + busy) * process_bytes() + busy * COPIES * (frames + samples)
    return simulated + Cost(in_turns(seconds, workers), memory, len(request.jobs) * 2 * samples, busy)


def has_data(folder: Path) -> bool:
    """Whether a simulation has been finished there."""
    return (folder / "train" / "frames.dcd").exists()


def _check_jobs(jobs: Sequence[Job]) -> None:
    if not jobs:
        raise ArgumentError.of("models", "one or more models", "none")
    if len({job.name for job in jobs}) < len(jobs):
        raise ArgumentError.of("models", "different ones, or of different seeds", ", ".join(job.name for job in jobs))


def _tell(request: Request, workers: int, console: Console) -> None:
    """Parameters, time and energy evaluations, before hours of work."""
    seconds = [estimate_seconds(request.system, job.model, job.schedule) for job in request.jobs]
    for job, each in zip(request.jobs, seconds, strict=True):
        say(
            console,
            f"{job.title}: {parameter_count(untrained(request.system, job.model)):,} parameters, "
            f"{job.schedule.evaluations:,} energy evaluations, about {duration(each)} on one core",
        )
    total = in_turns([round(each) for each in seconds], workers)
    say(console, f"All: about {duration(total)} with {workers} at a time, after the simulation")


def _result(job: Job, row: Row) -> str:
    shift = "no low energies" if row["energy_shift_kT"] is None else f"energy shift {row['energy_shift_kT']:.2f} kT"
    return f"{job.title}: {shift}, held-out NLL {row['nll']:.3f}, ESS {100 * row['ess_raw']:.2f} %"
