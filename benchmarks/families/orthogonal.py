"""Orthogonal layers: training steps against torch's parametrizations, geotorch and geoopt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks import layers, peers
from benchmarks.families.linear import plain_step, step
from benchmarks.measure import Effort, Side
from benchmarks.rows import Job, Row, compare
from p4torch.runs.provenance import cores

FEATURES = 512
OURS = ("p4torch rank 1", "p4torch rank 4")
TORCH = {"torch matrix_exp": "matrix_exp", "torch Cayley": "cayley", "torch Householder": "householder"}
BARS = {"geotorch": "geotorch", "torch matrix_exp": "matrix_exp", "torch Cayley": "cayley"}


def jobs() -> list[Job]:
    """All peers in one alternation."""
    return [Job("orthogonal", f"{FEATURES}", partial(_steps, FEATURES), cost=35)]


def _steps(features: int, effort: Effort) -> list[Row]:
    builders: dict[str, Callable[[], Side]] = {
        OURS[0]: lambda: step("Orthogonal", features, 1),
        OURS[1]: lambda: step("Orthogonal", features, 4),
        "geotorch": lambda: peers.step_of(lambda: peers.geotorch_orthogonal(features), features),
        "geoopt with its optimizer's step": lambda: peers.geoopt_step(features),
        "nn.Linear": lambda: plain_step(features),
    }
    builders |= {name: partial(_torch, features, kind) for name, kind in TORCH.items()}
    timed = compare(builders, effort, cores(), features=features, batch=layers.BATCH)
    rivals = [name for name in builders if name not in (*OURS, "nn.Linear")]
    return [
        timed.row(f"orthogonal, n = {features}", peer, side, bar=BARS.get(peer))
        for peer in sorted(rivals, key=lambda name: name not in BARS)
        for side in OURS
    ]


def _torch(features: int, kind: str) -> Side:
    return peers.step_of(lambda: peers.torch_orthogonal(features, kind), features)
