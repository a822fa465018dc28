"""What `python -m experiments density` does with its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments.density.config import TUNE_SEED
from experiments.density.models import MODELS, TITLES, build
from experiments.density.run import clear_demo, results, tune
from experiments.density.settings import DEMO, SHORT, TUNE, Asked, resolve
from experiments.targets import TARGETS
from p4torch.errors import ArgumentError
from p4torch.runs.runner import count_workers, start
from p4torch.training.measures import parameter_count


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
    workers = count_workers(request.workers)
    if request.short and not request.demo:
        raise ArgumentError.of("short", "used with --demo", "--short alone")
    if request.tune and request.demo:
        raise ArgumentError.of("tune", "used without --demo", "both")
    kind = "tune" if request.tune else "demo" if request.demo else "density"
    preset = {"tune": TUNE, "demo": SHORT if request.short else DEMO, "density": {}}[kind]
    out = request.out or Path("runs") / kind
    config = resolve(request.asked, preset, out / "config.json" if request.resume else None, tuning=request.tune)
    fields, seeds = {**config.fields(), "kind": kind}, [TUNE_SEED] if request.tune else config.seeds
    if request.resume and not out.exists():
        console.print(f"Nothing to resume in {out}: a new run.", highlight=False, soft_wrap=True)
    if request.demo and not request.resume:
        clear_demo(out, fields)
    with start(out, fields, seeds=seeds, workers=workers, resume=request.resume, console=console) as run:
        if not request.tune:
            run.leave(results(config, run))
            return
        for target, best in tune(config, run).items():
            run.say(f"{target}: {', '.join(f'{model} {rate:g}' for model, rate in best.items())}")
        run.say(f"Learning rates: {out / 'tune.json'}")


def listing() -> str:
    """Targets and models, for people."""
    models = (f"  {name}: {TITLES[name]}, {parameter_count(build(name))} parameters" for name in MODELS)
    targets = (f"  {name}: entropy {target.entropy:.4f} nats" for name, target in TARGETS.items())
    return "\n".join(["targets", *targets, "models", *models])
