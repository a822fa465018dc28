"""Learning rates: what `python -m experiments density --tune` found, in the table beside this file. Those of
"whole" were tuned on two-moons and checkerboard; the other targets have the rate of the latter, untried."""

from __future__ import annotations

import math
from pathlib import Path

from experiments.checks import check_rate
from experiments.density.config import Config, Rates
from experiments.tables import Row, best_rate, by_rate, number
from p4torch.errors import CheckpointError
from p4torch.runs.folder import read_json

#: A `tune.json` that was copied here.
_TABLE = Path(__file__).with_name("learning_rates.json")


def tuned_rates(path: Path | None = None) -> Rates:
    """The best learning rates by target and model, from a `tune.json`, or from the table beside this file.

    Raises:
        CheckpointError: not such a file.
    """
    path = path or _TABLE
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


def best_rates(config: Config, rows: list[Row]) -> Rates:
    """The learning rate with the lowest KL, by target and model."""

    def worth(rows: list[Row]) -> float:
        kl = number(rows[0]["kl"])
        return kl if math.isfinite(kl) else math.inf

    return {
        target: {
            model: best_rate(by_rate(row for row in rows if (row["target"], row["model"]) == (target, model)), worth)
            for model in config.models
        }
        for target in config.targets
    }
