"""What `p4torch density` does with its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from p4torch.errors import ArgumentError
from p4torch.experiments.density.models import MODELS, TITLES, build
from p4torch.experiments.density.run import clear_demo, run, tune
from p4torch.experiments.density.settings import DEMO, SHORT, TUNE, Asked, resolve
from p4torch.experiments.targets import TARGETS
from p4torch.training.folder import prepare
from p4torch.training.measures import parameter_count
from p4torch.training.provenance import cores


@dataclass(frozen=True)
class Request:
    """The options: what to train, where, and how."""

    asked: Asked
    out: Path | None = None
    workers: int | None = None
    resume: bool = False
    tune: bool = False
    demo: bool = False
    short: bool = False


def execute(request: Request, console: Console) -> None:
    """Check everything, then train, measure and print. Raises P4Error for what cannot be done."""
    workers = cores() if request.workers is None else request.workers
    if workers < 1:
        raise ArgumentError.of("workers", "an integer >= 1", workers)
    if request.short and not request.demo:
        raise ArgumentError.of("short", "used with --demo", "--short alone")
    if request.tune and request.demo:
        raise ArgumentError.of("tune", "used without --demo", "both")
    kind = "tune" if request.tune else "demo" if request.demo else "density"
    preset = {"tune": TUNE, "demo": SHORT if request.short else DEMO, "density": {}}[kind]
    out = request.out or Path("runs") / kind
    config = resolve(request.asked, preset, out / "config.json" if request.resume else None, tuning=request.tune)
    fields = {**config.fields(), "kind": kind}
    if request.resume and not out.exists():
        console.print(f"Nothing to resume in {out}: a new run.", highlight=False, soft_wrap=True)
    torch.set_num_threads(1)  # for the figure, as for the jobs: beside other work two threads wait for each other
    if request.demo and not request.resume:
        clear_demo(out, fields)
    prepare(out, fields, resume=request.resume)
    if request.tune:
        rates = tune(config, out, workers=workers, console=console)
        for target, best in rates.items():
            console.print(f"{target}: {', '.join(f'{model} {rate:g}' for model, rate in best.items())}")
        console.print(f"Learning rates: {out / 'tune.json'}", soft_wrap=True)
        return
    results = run(config, out, workers=workers, console=console)
    console.print(results.table, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Figure: {results.figure}", highlight=False, soft_wrap=True)


def listing() -> str:
    """Targets and models, for people."""
    models = (f"  {name}: {TITLES[name]}, {parameter_count(build(name))} parameters" for name in MODELS)
    targets = (f"  {name}: entropy {target.entropy:.4f} nats" for name, target in TARGETS.items())
    return "\n".join(["targets", *targets, "models", *models])
