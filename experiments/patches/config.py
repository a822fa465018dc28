"""What is run: one job, and the experiment as a grid of jobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from experiments.checks import check_counts, check_integers, check_names, check_rate
from experiments.command import Overrides, configured
from experiments.patches.data import FEATURES
from experiments.patches.models import DIRECTIONS, MODELS, Variant
from p4torch.errors import ArgumentError
from p4torch.merging.optimizer_state import OptimizerState

#: The seed of tuning jobs; full ones use others.
TUNE_SEED = 1000

#: What differs from the full run in a short one, which shows that everything works.
SHORT: dict[str, Any] = {
    "ranks": (2,),
    "every": (10,),
    "blocks": (21,),
    "seeds": (0,),
    "learning_rates": (1e-2,),
    "steps": 40,
    "interval": 20,
    "layers": 2,
    "clock_steps": 10,
}


@dataclass(frozen=True)
class Job:
    """One training. Everything that its numbers depend on is a field."""

    model: str
    rank: int
    every: int
    directions: str
    seed: int
    learning_rate: float
    steps: int
    batch: int
    layers: int
    interval: int
    optimizer_state: str
    block: int = 0

    @property
    def variant(self) -> Variant:
        """What is trained."""
        return Variant(self.model, self.rank, self.every, self.directions, self.block)

    @property
    def name(self) -> str:
        """The name of its file."""
        kind = f"lr{self.learning_rate:g}" if self.seed == TUNE_SEED else f"seed{self.seed}"
        return f"{self.variant.name}-{kind}"

    @property
    def title(self) -> str:
        """For people."""
        kind = f"lr {self.learning_rate:g}" if self.seed == TUNE_SEED else f"seed {self.seed}"
        return f"{self.variant.title}, {kind}"

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Config:
    """The experiment. The defaults are those of the full run.

    Args:
        models: out of `MODELS`; P4Inv with each of `ranks`, `every` (merge intervals in steps) and `directions`, or
            with each of `blocks` and `every`, or triangular with each of `every`. A block of 63 is one of all
            coordinates.
        seeds: of the full trainings.
        learning_rates: the short list that each variant's rate comes from; one alone is used as it is.
        steps, tune_steps: optimizer steps of a full training and of one that tunes.
        batch: patches of a step.
        layers: linear layers of the flow.
        interval: steps between two measurements of the held-out log-likelihood.
        clock_steps: at least as many steps of each variant are timed in one turn.
        optimizer_state: what merges do to the optimizer's memory, see `p4torch.MergeScheduler`.

    Raises:
        ArgumentError: unknown names, numbers out of range.
    """

    models: tuple[str, ...] = MODELS
    ranks: tuple[int, ...] = (1, 2, 4, 8)
    every: tuple[int, ...] = (10, 50, 200)
    directions: tuple[str, ...] = DIRECTIONS
    blocks: tuple[int, ...] = (FEATURES, 21)
    seeds: tuple[int, ...] = (0, 1)
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    steps: int = 3_000
    tune_steps: int = 500
    batch: int = 256
    layers: int = 6
    interval: int = 100
    clock_steps: int = 50
    optimizer_state: str = "transport"

    def __post_init__(self) -> None:
        check_names("models", self.models, MODELS)
        check_names("directions", self.directions, DIRECTIONS)
        if self.optimizer_state not in get_args(OptimizerState):
            expected = f"one of {', '.join(get_args(OptimizerState))}"
            raise ArgumentError.of("optimizer_state", expected, repr(self.optimizer_state))
        for name, least in (("ranks", 1), ("every", 1), ("blocks", 1), ("seeds", 0)):
            check_integers(name, getattr(self, name), least)
        for name in ("ranks", "blocks"):
            if max(getattr(self, name)) > FEATURES:
                raise ArgumentError.of(name, f"at most {FEATURES}", max(getattr(self, name)))
        if TUNE_SEED in self.seeds:
            raise ArgumentError.of("seeds", f"without {TUNE_SEED}, the seed of tuning", TUNE_SEED)
        if not self.learning_rates or len(set(self.learning_rates)) < len(self.learning_rates):
            raise ArgumentError.of("lr", "different positive numbers", self.learning_rates)
        for rate in self.learning_rates:
            check_rate(rate)
        check_counts(self, "steps", "tune_steps", "batch", "layers", "interval", "clock_steps")

    def variants(self) -> list[Variant]:
        """All that is trained."""
        perturbed = {
            "p4inv": [
                Variant("p4inv", rank, every, directions)
                for directions in self.directions
                for every in self.every
                for rank in self.ranks
            ],
            "blocks": [Variant("blocks", every=every, block=block) for every in self.every for block in self.blocks],
            "triangular": [Variant("triangular", every=every) for every in self.every],
        }
        return [variant for model in self.models for variant in perturbed.get(model, [Variant(model)])]

    def tuning(self) -> list[Job]:
        """Short trainings of each variant with each learning rate; none if there is one rate alone."""
        rates = self.learning_rates if len(self.learning_rates) > 1 else ()
        return [self._job(variant, TUNE_SEED, rate, self.tune_steps) for variant in self.variants() for rate in rates]

    def jobs(self, rates: dict[str, float]) -> list[Job]:
        """The full trainings, with the rates by name of variant; seed by seed, so that a run that is stopped early has
        every variant once."""
        return [
            self._job(variant, seed, rates[variant.name], self.steps)
            for seed in self.seeds
            for variant in self.variants()
        ]

    def _job(self, variant: Variant, seed: int, rate: float, steps: int) -> Job:
        shared = {name: getattr(self, name) for name in ("batch", "layers", "interval", "optimizer_state")}
        return Job(**asdict(variant), seed=seed, learning_rate=rate, steps=steps, **shared)

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {"experiment": "patches", **asdict(self)}


def resolve(overrides: Overrides, stored: Path | None = None, *, short: bool = False) -> Config:
    """The defaults, changed by a stored configuration that is resumed (or by a short run), and by what was asked."""
    names = [field.name for field in fields(Config)]
    return Config(**configured("patches", names, SHORT if short else {}, overrides, stored))
