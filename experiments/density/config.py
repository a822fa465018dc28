"""What is run: one job, and the experiment as a grid of jobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from experiments.checks import check_counts, check_integers, check_names, check_rate
from experiments.density.models import MODELS
from experiments.targets import TARGETS

#: The short list that each model's learning rate comes from.
LEARNING_RATES = (5e-3, 1e-2, 2e-2, 5e-2)
#: Of models whose rates have another unit: a step at the rate 1 would move a whole matrix by 8 times its size.
OWN_RATES = {"whole": (1e-3, 2e-3, 4e-3, 8e-3)}
#: The seed of tuning runs; full runs use others.
TUNE_SEED = 1000

Rates = dict[str, dict[str, float]]
Split = Literal["test", "validation"]
#: Full trainings, trainings that tune learning rates, or the demo.
Kind = Literal["density", "tune", "demo"]


@dataclass(frozen=True)
class Job:
    """One model trained on one target. Everything that its numbers depend on is a field."""

    target: str
    model: str
    seed: int
    steps: int
    batch: int
    every: int
    learning_rate: float
    split: Split = "test"

    @property
    def name(self) -> str:
        """The name of its folder."""
        kind = f"seed{self.seed}" if self.split == "test" else f"lr{self.learning_rate:g}"
        return f"{self.target}-{self.model}-{kind}"

    @property
    def title(self) -> str:
        """For people."""
        kind = f"seed {self.seed}" if self.split == "test" else f"lr {self.learning_rate:g}"
        return f"{self.target} {self.model} {kind}"

    def fields(self) -> dict[str, Any]:
        """For JSON and checkpoints."""
        return asdict(self)


@dataclass(frozen=True)
class Config:
    """The experiment: every model on every target with every seed.

    Args:
        targets, models, seeds: the grid.
        steps, batch: optimizer steps of a job, points of a step.
        every: merge interval of P4Inv, in steps.
        learning_rates: by target and model; empty if they are to be found.
        kind: of the run.

    Raises:
        ArgumentError: unknown names, numbers out of range.
    """

    targets: tuple[str, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    batch: int
    every: int
    learning_rates: Rates
    kind: Kind = "density"

    def __post_init__(self) -> None:
        check_names("targets", self.targets, TARGETS)
        check_names("models", self.models, MODELS)
        check_integers("seeds", self.seeds, 0)
        check_counts(self, "steps", "batch", "every")
        for target in self.targets if self.learning_rates else ():  # none: they are being tuned
            for model in self.models:
                check_rate(self.learning_rates.get(target, {}).get(model), f"of {model} on {target}")

    def jobs(self) -> list[Job]:
        """All jobs, seed by seed, so that a run that is stopped early has whole rows."""
        return [
            Job(target, model, seed, self.steps, self.batch, self.every, self.learning_rates[target][model])
            for seed in self.seeds
            for target in self.targets
            for model in self.models
        ]

    def tuning(self) -> list[Job]:
        """Each model on each target with each learning rate of its short list: one seed, and a validation set that no
        full run touches."""
        return [
            Job(target, model, TUNE_SEED, self.steps, self.batch, self.every, rate, "validation")
            for target in self.targets
            for model in self.models
            for rate in OWN_RATES.get(model, LEARNING_RATES)
        ]

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {"experiment": "density", **asdict(self)}
