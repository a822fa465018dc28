"""Training steps of a perturbed `nn.Linear` against a plain one, and the same through `solve`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks import layers
from benchmarks.measure import Effort, Side
from benchmarks.rows import Job, Row, compare
from p4torch.runs.provenance import cores

PROPERTIES = ("Orthogonal", "Invertible", "UnitDeterminant", "SpectralBound", "LowRankUpdate")
RANKS = (1, 2, 4)
LARGE, SMALL = (512, 1024, 2048), (32, 64)
PLAIN, FLOOR = "nn.Linear", "the two big products"


def jobs() -> list[Job]:
    """One job for each property and size: all ranks, the plain layer and the floor in turn."""
    made = [
        Job("linear", f"{property}-{features}", partial(_forward, property, features), cost=1 + (features / 450) ** 2)
        for features in (*SMALL, *LARGE)
        for property in PROPERTIES
    ]
    return made + [
        Job("solve", f"Invertible-{features}", partial(_solve, features), cost=1 + (features / 450) ** 2)
        for features in LARGE
    ]


def step(property: str, features: int, rank: int) -> Side:
    """The training step of a perturbed layer, with log|det| where there is one."""
    layer = layers.perturbed(property, features, rank)
    return Side(layers.training_step(layers.forward_of(layer, property), layer, features))


def solve_step(features: int, rank: int) -> Side:
    """The same in the inverse direction."""
    layer = layers.perturbed("Invertible", features, rank)
    return Side(layers.training_step(layers.inverse_of(layer), layer, features))


def plain_step(features: int) -> Side:
    """The training step of `nn.Linear`."""
    layer = layers.plain(features)
    return Side(layers.training_step(layer, layer, features))


def _forward(property: str, features: int, effort: Effort) -> list[Row]:
    bar = f"linear {features}" if features in LARGE else "linear small"
    return _against_plain(property, features, partial(step, property, features), bar, effort)


def _solve(features: int, effort: Effort) -> list[Row]:
    return _against_plain("Invertible, solve", features, partial(solve_step, features), f"solve {features}", effort)


def _against_plain(name: str, features: int, build: Callable[[int], Side], bar: str, effort: Effort) -> list[Row]:
    builders: dict[str, Callable[[], Side]] = {_named(rank): partial(build, rank) for rank in RANKS}
    builders[PLAIN] = partial(plain_step, features)
    builders[FLOOR] = lambda: Side(layers.big_products(features))
    count = cores() if features in LARGE else 1
    timed = compare(builders, effort, count, features=features, batch=layers.BATCH)
    return [
        timed.row(f"{name}, n = {features}, rank {rank}", _named(rank), PLAIN, bar=bar, floor=FLOOR) for rank in RANKS
    ]


def _named(rank: int) -> str:
    return f"p4torch rank {rank}"
