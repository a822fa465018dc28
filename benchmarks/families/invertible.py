"""Invertible linear layers in both directions with log|det|, against LU and dense ones; and single inverse passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

import p4torch as p4
from benchmarks import layers, peers
from benchmarks.families.linear import plain_step, solve_step, step
from benchmarks.measure import Effort, Side
from benchmarks.rows import Job, Row, compare
from p4torch.runs.provenance import cores

BARRED, FURTHER = 512, (2048,)
PASS_FEATURES = 1024
LU, AFFINE = "nflows LULinear", "normflows InvertibleAffine"
DENSE, ONCE = "dense slogdet, solve", "dense, factored once"
OURS = ("p4torch rank 1", "p4torch rank 4")


def jobs() -> list[Job]:
    """Training steps forward and inverse, and inverse passes without gradient for 1 and 32 vectors."""
    steps = [
        Job(
            "invertible",
            f"{direction}-{features}",
            partial(_steps, direction, features),
            cost=3 + (features / 350) ** 2,
        )
        for features in (BARRED, *FURTHER)
        for direction in ("forward", "inverse")
    ]
    return steps + [Job("invertible", f"pass-{count}", partial(_passes, count), cost=5) for count in (1, 32)]


def _steps(direction: str, features: int, effort: Effort) -> list[Row]:
    ours = partial(step, "Invertible") if direction == "forward" else solve_step
    builders: dict[str, Callable[[], Side]] = {
        OURS[0]: lambda: ours(features, 1),
        OURS[1]: lambda: ours(features, 4),
        LU: lambda: peers.step_of(lambda: peers.lu_linear(features), features, direction),
        AFFINE: lambda: peers.step_of(lambda: peers.lu_affine(features), features, direction),
        DENSE: lambda: peers.step_of(lambda: peers.Dense(features), features, direction),
        "nn.Linear": lambda: plain_step(features),
    }
    timed = compare(builders, effort, cores(), features=features, batch=layers.BATCH)
    bars = {LU: "lu", DENSE: "dense"} if features == BARRED else {}
    return [
        timed.row(f"invertible, {direction}, n = {features}", peer, side, bar=bars.get(peer))
        for peer in (LU, DENSE, AFFINE)
        for side in OURS
    ]


def _passes(count: int, effort: Effort) -> list[Row]:
    y = torch.randn(count, PASS_FEATURES)
    weight = layers.rotation(PASS_FEATURES)
    builders: dict[str, Callable[[], Side]] = {
        OURS[0]: lambda: inverse_pass(PASS_FEATURES, 1, y),
        OURS[1]: lambda: inverse_pass(PASS_FEATURES, 4, y),
        DENSE: lambda: Side(lambda: peers.dense_inverse(weight, y)),
        ONCE: lambda: Side(lambda: peers.factored_inverse(weight, y)),
    }
    timed = compare(builders, effort, cores(), features=PASS_FEATURES, batch=count)
    bars = {DENSE: f"pass {count}"}
    return [
        timed.row(f"inverse pass, n = {PASS_FEATURES}, vectors: {count}", peer, side, bar=bars.get(peer))
        for peer in (DENSE, ONCE)
        for side in OURS
    ]


def inverse_pass(features: int, rank: int, y: torch.Tensor) -> Side:
    """y R_B(A)⁻ᵀ and log|det R_B(A)|, without gradients."""
    site = next(p4.sites(layers.perturbed("Invertible", features, rank)))
    perturbation, base = site.perturbation, site.base
    return Side(torch.no_grad()(lambda: layers.solve_logabsdet(perturbation, base, y)))
