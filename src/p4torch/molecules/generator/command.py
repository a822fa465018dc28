"""What `p4torch molecule fit` and `sample` do with their options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from p4torch.errors import ArgumentError
from p4torch.molecules.command import Molecule, announce
from p4torch.molecules.generator.job import Job
from p4torch.molecules.generator.presets import schedule
from p4torch.molecules.generator.run import Request, cost, has_data, train_generators
from p4torch.molecules.generator.summary import REPORT
from p4torch.molecules.simulation.torsion_flattening import TorsionFlattening
from p4torch.runs.progress import say
from p4torch.runs.runner import count_workers

#: Samples that a model is judged by; fewer in a check.
SAMPLES, CHECK_SAMPLES = 200_000, 2_000


@dataclass(frozen=True)
class FitOptions:
    """The options of `fit`."""

    models: tuple[str, ...]
    preset: str
    seeds: tuple[int, ...]
    likelihood_steps: int | None
    force_steps: int | None
    energy_steps: int | None
    merge_every: int | None
    perturbation_rate: float | None
    data: Path | None
    samples: int | None


def run_fit(
    molecule: Molecule,
    options: FitOptions,
    out: Path,
    workers: int | None,
    console: Console,
    *,
    resume: bool,
    dry_run: bool = False,
) -> None:
    """Simulate, train, measure, report; a dry run says what that would cost."""
    system = molecule.system()
    if options.data is not None and not has_data(options.data):
        raise ArgumentError.of("data", "the folder of a finished simulation, with train/frames.dcd", options.data)
    check = options.preset == "check"
    samples = (CHECK_SAMPLES if check else SAMPLES) if options.samples is None else options.samples
    jobs = tuple(
        Job(
            system,
            (options.data or out / "data").absolute(),
            model,
            schedule(
                model,
                options.preset,
                likelihood_steps=options.likelihood_steps,
                force_steps=options.force_steps,
                energy_steps=options.energy_steps,
                merge_every=options.merge_every,
                perturbation_rate=options.perturbation_rate,
                seed=seed,
            ),
            samples,
        )
        for model in options.models
        for seed in options.seeds
    )
    simulation = TorsionFlattening().short() if check else TorsionFlattening()
    request = Request(system, jobs, simulation, strict=not check, physics=molecule.physics)
    busy = count_workers(workers)
    if dry_run or not resume:
        announce(console, cost(request, busy), dry_run)
    say(console, repr(system))
    if dry_run:
        return
    train_generators(request, out, workers=workers, resume=resume, console=console)
    say(console, f"Rows, weights and samples: {out}")
    say(console, f"Report: {out / REPORT}")
