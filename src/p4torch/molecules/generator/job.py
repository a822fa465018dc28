"""One model: trained, measured, and written down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p4torch._options import check_integer
from p4torch.molecules.generator.architectures import architecture
from p4torch.molecules.generator.encoded import Encoded
from p4torch.molecules.generator.evaluation import evaluate, held_out_nll
from p4torch.molecules.generator.generator import BoltzmannGenerator
from p4torch.molecules.generator.reference import Reference
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.generator.schedule import Schedule
from p4torch.molecules.generator.training import Training
from p4torch.molecules.simulation.data import ReferenceData, save_array
from p4torch.molecules.system import MolecularSystem
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import write_json
from p4torch.runs.pool import Progress, Report
from p4torch.runs.provenance import provenance

NLL = "held-out-nll.npy"


@dataclass(frozen=True)
class Job:
    """A model of a molecule, trained on the data of a run folder by a schedule, judged by so many samples."""

    system: MolecularSystem
    data: Path
    model: str
    schedule: Schedule
    samples: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", check_integer("samples", self.samples, 1))

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.model if self.schedule.seed == 0 else f"{self.model}-seed{self.schedule.seed}"

    @property
    def title(self) -> str:
        """For people."""
        seed = f", seed {self.schedule.seed}" if self.schedule.seed else ""
        return architecture(self.model).title + seed

    @property
    def steps(self) -> int:
        """Its length in points through the flow."""
        return self.schedule.points

    def reference(self) -> Reference:
        """The data."""
        parts = (ReferenceData.load(self.data, part, self.system) for part in ("train", "held_out"))
        return Reference(self.system, *parts)


def run_job(out: Path, job: Job, report: Report[Progress]) -> dict[str, Any] | None:
    """Train, from the checkpoint in the job's folder if there is one; measure; write weights, samples and figures.

    Returns:
        the row, also in `result.json`; None if the report asked to stop.
    """
    torch.set_flush_denormal(True)
    path = out / job.name
    path.mkdir(parents=True, exist_ok=True)
    record = provenance(seed=job.schedule.seed)
    generator, held_out, training = _prepare(path, job, report)
    if not training.fit():
        return None
    training.data = None  # memory for what follows
    reference = job.reference()
    generator.save(path / "generator.safetensors")
    samples = generator.sample(job.samples, torch.Generator().manual_seed(job.schedule.seed))
    save_samples(path / "samples.npz", samples)
    nll = held_out_nll(generator, held_out)
    save_nll(path, nll - held_out.logabsdet.double())
    steps = [phase.steps for phase in job.schedule.phases]
    row = {
        **evaluate(generator, reference, samples, held_out, nll),
        "seed": job.schedule.seed,
        "step_seconds": training.step_seconds[0] / max(1, steps[0]),
        "step_seconds_by_stage": [seconds / max(1, n) for seconds, n in zip(training.step_seconds, steps, strict=True)],
        "train_hours": training.seconds / 3600,
        "energy_evaluations": training.evaluations,
        "steps_left_out": training.left_out,
        "energies_left_out": training.broken,
        "protocol": job.schedule.fields(),
    }
    write_json(path / "provenance.json", {**record, "wall_seconds": training.seconds})
    write_json(path / "result.json", row)
    return row


def _prepare(path: Path, job: Job, report: Report[Progress]) -> tuple[BoltzmannGenerator, Encoded, Training]:
    """What is trained, held-out frames, and the training. The frames themselves are let go meanwhile."""
    reference = job.reference()
    train = reference.train
    generator = BoltzmannGenerator.create(job.system, train.frames, train.weights, job.model, seed=job.schedule.seed)
    held_out = Encoded(generator.coordinates, reference.held_out.frames, reference.held_out.weights)
    training = Training(
        generator,
        Encoded(generator.coordinates, train.frames, train.weights),
        job.schedule,
        out=path,
        resume=True,
        held_out=held_out,
        level=reference.level,
        report=report,
    )
    return generator, held_out, training


def save_nll(path: Path, nll: Tensor) -> None:
    """Minus the log-density of held-out frames' shapes, whatever the coordinates are, in the job's folder."""
    write_whole(path / NLL, partial(save_array, nll.numpy()))


def has_nll(path: Path) -> bool:
    """Whether the folder has them: earlier revisions left none."""
    return (path / NLL).exists()


def load_nll(path: Path) -> Tensor:
    """What `save_nll` wrote."""
    return torch.from_numpy(np.load(path / NLL))


def save_samples(path: Path, samples: Samples) -> None:
    """As NumPy arrays."""
    arrays = {name: getattr(samples, name).numpy() for name in ("frames", "energies", "log_prob", "log_weights")}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(path, write)


def load_samples(path: Path) -> Samples:
    """What `save_samples` wrote."""
    with np.load(path) as arrays:
        return Samples(*(torch.from_numpy(arrays[name]) for name in ("frames", "energies", "log_prob", "log_weights")))
