"""What `p4torch molecule fit` and `sample` do with their options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from p4torch.errors import ArgumentError
from p4torch.molecules.command import Molecule
from p4torch.molecules.generator.job import Job
from p4torch.molecules.generator.presets import protocol
from p4torch.molecules.generator.run import Request, train_generators
from p4torch.molecules.simulation.biased import Biased

#: Samples that a model is judged by; fewer in a check.
SAMPLES, CHECK_SAMPLES = 200_000, 2_000


@dataclass(frozen=True)
class Asked:
    """The options of `fit`."""

    models: tuple[str, ...]
    preset: str
    seeds: tuple[int, ...]
    likelihood_steps: int | None
    force_steps: int | None
    energy_steps: int | None
    merge_every: int
    perturbation_rate: float | None
    data: Path | None
    samples: int | None


def run_fit(
    molecule: Molecule, asked: Asked, out: Path, workers: int | None, console: Console, *, resume: bool
) -> None:
    """Simulate, train, measure, report."""
    system = molecule.system()
    console.print(f"{system!r}", markup=False, highlight=False, soft_wrap=True)
    if asked.data is not None and not (asked.data / "train" / "frames.dcd").exists():
        raise ArgumentError.of("data", "the folder of a finished simulation, with train/frames.dcd", asked.data)
    check = asked.preset == "check"
    samples = (CHECK_SAMPLES if check else SAMPLES) if asked.samples is None else asked.samples
    jobs = tuple(
        Job(
            system,
            (asked.data or out / "data").absolute(),
            model,
            protocol(
                model,
                asked.preset,
                likelihood_steps=asked.likelihood_steps,
                force_steps=asked.force_steps,
                energy_steps=asked.energy_steps,
                merge_every=asked.merge_every,
                perturbation_rate=asked.perturbation_rate,
                seed=seed,
            ),
            samples,
        )
        for model in asked.models
        for seed in asked.seeds
    )
    request = Request(system, jobs, Biased().short() if check else Biased(), strict=not check)
    train_generators(request, out, workers=workers, resume=resume, console=console)
    console.print(f"Rows, weights and samples: {out}", highlight=False, soft_wrap=True)
