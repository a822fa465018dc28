"""From options to a configuration: presets, then a stored configuration, then what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.checks import check_names, check_rate
from experiments.command import Overrides, configured
from experiments.density.config import TUNE_SEED, Config, Kind
from experiments.density.models import MODELS, TITLES, build
from experiments.density.rates import one_rate, tuned_rates
from experiments.targets import TARGETS
from p4torch.errors import ArgumentError, CheckpointError
from p4torch.training.measures import parameter_count

#: The full run.
FULL: dict[str, Any] = {
    "targets": tuple(TARGETS),
    "models": MODELS,
    "seeds": (0, 1, 2),
    "steps": 8_000,
    "batch": 256,
    "every": 200,
}
#: What differs from it in tuning, in the demo (a few minutes on two cores), and in the demo of a check.
TUNE: dict[str, Any] = {"seeds": (TUNE_SEED,), "steps": 3_000}
DEMO: dict[str, Any] = {"targets": ("eight-gaussians", "two-moons"), "seeds": (0,)}
SHORT: dict[str, Any] = {**DEMO, "steps": 300, "every": 50}


def run_kind(tune: bool, demo: bool, short: bool) -> Kind:
    """Raises ArgumentError for flags that do not go together."""
    if short and not demo:
        raise ArgumentError.of("short", "used with --demo", "--short alone")
    if tune and demo:
        raise ArgumentError.of("tune", "used without --demo", "both")
    return "tune" if tune else "demo" if demo else "density"


def resolve(overrides: Overrides, stored: Path | None = None, *, kind: Kind = "density", short: bool = False) -> Config:
    """The configuration of a run: `FULL`, changed by the preset of its kind, or the `config.json` of a run that is
    resumed; then what was asked for. Learning rates are all `lr`, or those of the file `rates`, or the tuned ones;
    tuning has a seed and learning rates of its own."""
    preset = {"tune": TUNE, "demo": SHORT if short else DEMO, "density": {}}[kind]
    options = {name: overrides.get(name) for name in FULL}
    values = configured("density", (*FULL, "learning_rates"), {**FULL, **preset}, options, stored)
    resumed, rates = "learning_rates" in values, values.pop("learning_rates", None)
    if resumed and not isinstance(rates, dict):
        raise CheckpointError(f"`{stored}` must hold learning rates by target and model, got {rates!r}")
    check_names("targets", values["targets"], TARGETS)
    check_names("models", values["models"], MODELS)
    lr, file = overrides.get("lr"), overrides.get("rates")
    if kind == "tune":
        for name in ("seeds", "lr", "rates"):
            if overrides.get(name) is not None:
                raise ArgumentError.of(name, "left out with --tune", overrides[name])
        rates = {}
    elif lr is not None:
        check_rate(lr)
        rates = one_rate(lr, values["targets"], values["models"])
    elif rates is None or file is not None:
        tuned = tuned_rates(file)
        rates = {
            target: {model: tuned.get(target, {}).get(model) for model in values["models"]}
            for target in values["targets"]
        }
    return Config(**values, learning_rates=rates, kind=kind)


def listing() -> str:
    """Targets and models, for people."""
    models = (f"  {name}: {TITLES[name]}, {parameter_count(build(name))} parameters" for name in MODELS)
    targets = (f"  {name}: entropy {target.entropy:.4f} nats" for name, target in TARGETS.items())
    return "\n".join(["targets", *targets, "models", *models])
