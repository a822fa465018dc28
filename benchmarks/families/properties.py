"""Training steps of an `nn.Linear` under each property that has no family of its own, against a plain one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import p4torch as p4
from benchmarks import layers
from benchmarks.families.linear import PLAIN, plain_step
from benchmarks.measure import Effort, Side
from benchmarks.rows import Job, Row, compare
from p4torch.training.provenance import cores

FEATURES = 512

#: Classes with options.
CASES: dict[str, Callable[[Tensor], p4.Perturbation]] = {
    "PositiveDefinite-rank1": p4.PositiveDefinite,
    "PositiveDefinite-rank4": partial(p4.PositiveDefinite, rank=4),
    "FixedRank-rank16": partial(p4.FixedRank, rank=16),
    "FixedRank-rank64": partial(p4.FixedRank, rank=64),
    "Nonnegative": p4.Nonnegative,
    "Stochastic-rank1": p4.Stochastic,
    "Stochastic-rank4": partial(p4.Stochastic, rank=4),
    "Stochastic-doubly": partial(p4.Stochastic, doubly=True),
}


def jobs() -> list[Job]:
    """One job for each case: it and the plain layer in turn."""
    return [Job("properties", name, partial(_against_plain, name)) for name in CASES]


def step(name: str) -> Side:
    """The training step of a perturbed layer. Its base is a matrix of exp(x), x ~ N(0, 1/4), projected."""
    layer = layers.plain(FEATURES)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        layer.weight.copy_((0.5 * torch.randn(FEATURES, FEATURES, generator=generator)).exp())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", p4.ProjectionWarning)
        p4.perturb(layer, "weight", CASES[name])
    layers.nudge(layer)
    return Side(layers.training_step(layer, layer, FEATURES))


def _against_plain(name: str, effort: Effort) -> list[Row]:
    builders: dict[str, Callable[[], Side]] = {name: partial(step, name), PLAIN: partial(plain_step, FEATURES)}
    timed = compare(builders, effort, cores(), features=FEATURES, batch=layers.BATCH)
    return [timed.row(f"{name}, n = {FEATURES}", name, PLAIN)]
