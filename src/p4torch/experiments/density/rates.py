"""Learning rates: what `p4torch density --tune` found, in a table that ships with the package. Those of "whole" were
tuned on two-moons and checkerboard; the other targets have the rate of the latter, untried."""

from __future__ import annotations

import math
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from p4torch.errors import CheckpointError
from p4torch.experiments.density.config import Config, Rates, check_rate
from p4torch.training.folder import read_json

#: A `tune.json` that was copied here.
_TABLE = files("p4torch.experiments.density") / "learning_rates.json"


def tuned_rates(path: Path | None = None) -> Rates:
    """The best learning rates by target and model, from a `tune.json`, or from the table of the package.

    Raises:
        CheckpointError: not such a file.
    """
    if path is None:
        with as_file(_TABLE) as shipped:
            return tuned_rates(shipped)
    table = read_json(path)
    try:
        best = {
            str(target): {str(model): float(rate) for model, rate in models.items()}
            for target, models in table["best"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'`{path}` must hold {{"best": {{target: {{model: learning rate}}}}}}, as --tune writes it'
        ) from error
    for target, models in best.items():
        for model, rate in models.items():
            check_rate(rate, f"for {model} on {target} in {path}")
    return best


def one_rate(rate: float, targets: tuple[str, ...], models: tuple[str, ...]) -> Rates:
    """The same learning rate everywhere."""
    return {target: dict.fromkeys(models, rate) for target in targets}


def best_rates(config: Config, rows: list[dict[str, Any]]) -> Rates:
    """The learning rate with the lowest KL, by target and model."""

    def worth(row: dict[str, Any]) -> float:
        kl = row["kl"]
        return kl if kl is not None and math.isfinite(kl) else math.inf

    return {
        target: {
            model: min((row for row in rows if (row["target"], row["model"]) == (target, model)), key=worth)[
                "learning_rate"
            ]
            for model in config.models
        }
        for target in config.targets
    }
