"""From options to a configuration: presets, then a stored configuration, then what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.checks import check_names, check_rate
from experiments.density.config import TUNE_SEED, Config
from experiments.density.models import MODELS
from experiments.density.rates import one_rate, tuned_rates
from experiments.targets import TARGETS
from p4torch.errors import ArgumentError, CheckpointError
from p4torch.runs import folder

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


@dataclass(frozen=True)
class Asked:
    """The options of the command line; None for what was not given."""

    targets: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    steps: int | None = None
    batch: int | None = None
    every: int | None = None
    lr: float | None = None
    rates: Path | None = None


def resolve(asked: Asked, preset: dict[str, Any], stored: Path | None = None, *, tuning: bool = False) -> Config:
    """The configuration of a run: `FULL`, changed by the preset, by the `config.json` of a run that is resumed, and by
    what was asked for. Tuning has a seed and learning rates of its own."""
    values = {**FULL, **preset}
    rates = None
    if stored is not None and stored.exists():
        values = folder.stored(stored, (*FULL, "learning_rates"), "density")
        rates = values.pop("learning_rates")
        if not isinstance(rates, dict):
            raise CheckpointError(f"`{stored}` must hold learning rates by target and model, got {rates!r}")
    values.update({name: value for name in FULL if (value := getattr(asked, name)) is not None})
    check_names("targets", values["targets"], TARGETS)
    check_names("models", values["models"], MODELS)
    if tuning:
        for name in ("seeds", "lr", "rates"):
            if getattr(asked, name) is not None:
                raise ArgumentError.of(name, "left out with --tune", getattr(asked, name))
        return Config(**values, learning_rates={})
    if asked.lr is not None:
        check_rate(asked.lr)
        rates = one_rate(asked.lr, values["targets"], values["models"])
    elif rates is None or asked.rates is not None:
        tuned = tuned_rates(asked.rates)
        rates = {
            target: {model: tuned.get(target, {}).get(model) for model in values["models"]}
            for target in values["targets"]
        }
    return Config(**values, learning_rates=rates)
