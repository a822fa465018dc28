"""Cost against n, for the figure: forward, inverse, log|det|, merge and memory of one layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import p4torch as p4
from benchmarks import layers, peers
from benchmarks.families.memory import adam_peak, perturbed_peak, plain_peak
from benchmarks.families.merges import merge
from benchmarks.measure import Effort, Side, quartiles
from benchmarks.rows import Job, Row, compare, gathered
from p4torch.runs.provenance import cores

SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
VECTORS = 32
PANELS = ("forward", "inverse", "logabsdet", "merge", "memory")

#: Largest n of sides that would take minutes beyond it.
CAPS = {"torch Cayley": 2048, "torch matrix_exp": 512}

Builder = Callable[[int], Any]


def jobs() -> list[Job]:
    """One job for each panel and size: all sides in turn."""
    return [
        Job("scaling", f"{panel}-{features}", partial(_rows, panel, features), cost=2 + (features / 900) ** 2)
        for panel in PANELS
        for features in SIZES
    ]


def _rows(panel: str, features: int, effort: Effort) -> list[Row]:
    builders: dict[str, Callable[[], Any]] = {
        name: partial(build, features) for name, build in SIDES[panel].items() if features <= CAPS.get(name, SIZES[-1])
    }
    if panel == "memory":
        return [_bytes(name, features, build) for name, build in builders.items()]
    timed = compare(builders, effort, cores())
    rows = []
    for name in builders:
        facts = {"panel": panel, "features": features, "unit": "s", **timed.facts}
        if panel != "merge":
            facts["vectors"] = VECTORS
        if name in timed.absent:
            reason, failed = timed.absent[name]
            rows.append(Row(f"{panel}, n = {features}, {name}", name, reason=reason, failed=failed, facts=facts))
            continue
        low, value, high = quartiles(timed.times[name])
        facts |= {"value": value, "quartiles": [low, high], "rounds": len(timed.times[name])}
        rows.append(Row(f"{panel}, n = {features}, {name}", name, facts=facts))
    return rows


def _bytes(name: str, features: int, peak: Callable[[], int]) -> Row:
    result, reason, failed = gathered(name, peak)
    facts: dict[str, Any] = {"panel": "memory", "features": features, "unit": "bytes", "batch": layers.BATCH}
    title = f"memory, n = {features}, {name}"
    if result is None:
        return Row(title, name, reason=reason, failed=failed, facts=facts)
    return Row(title, name, facts={**facts, "value": result})


# --- sides: name -> n -> Side, or bytes -----------------------------------------------------------------------


def _quiet(call: Callable[[], object]) -> Side:
    return Side(torch.no_grad()(call))


def _vectors(features: int) -> torch.Tensor:
    return torch.randn(VECTORS, features)


def _module(build: Builder, features: int) -> Side:
    module, x = build(features), _vectors(features)
    return _quiet(lambda: module(x))


def _inverse(build: Builder, features: int) -> Side:
    module, z = build(features), _vectors(features)
    return _quiet(lambda: module.inverse(z))


def _ours(property: str, rank: int, features: int) -> nn.Linear:
    return layers.perturbed(property, features, rank)


def _solve(property: str, rank: int, features: int) -> Side:
    site, z = next(p4.sites(_ours(property, rank, features))), _vectors(features)
    return _quiet(lambda: layers.solve_logabsdet(site.perturbation, site.base, z))


def _rows_only(property: str, rank: int, features: int) -> Side:
    site, z = next(p4.sites(_ours(property, rank, features))), _vectors(features)
    return _quiet(lambda: site.perturbation.solve(site.base, z))


def _logabsdet(rank: int, features: int) -> Side:
    site = next(p4.sites(_ours("Invertible", rank, features)))
    return _quiet(lambda: site.perturbation.logabsdet(site.base))


def _dense_logabsdet(features: int) -> Side:
    weight = layers.rotation(features)
    return _quiet(lambda: torch.linalg.slogdet(weight))


def _lu_logabsdet(features: int) -> Side:
    module: Any = peers.lu_linear(features)
    return _quiet(module.logabsdet)


def _merge(property: str, rank: int, features: int) -> Side:
    return merge(property, features, rank)


def _recompute(features: int) -> Side:
    weight = layers.rotation(features)
    return _quiet(lambda: (torch.linalg.inv(weight), torch.linalg.slogdet(weight)))


def _peak(property: str, rank: int, features: int) -> int:
    return perturbed_peak(property, features, rank)


def _peer_peak(build: Builder, features: int) -> int:
    module = build(features)
    return adam_peak(module, module, features)


def _cayley(features: int) -> nn.Module:
    return peers.torch_orthogonal(features, "cayley")


def _matrix_exp(features: int) -> nn.Module:
    return peers.torch_orthogonal(features, "matrix_exp")


ONE, FOUR, ORTHOGONAL = "p4torch Invertible, rank 1", "p4torch Invertible, rank 4", "p4torch Orthogonal, rank 1"
LU, DENSE = "LU (nflows)", "dense slogdet, solve"

SIDES: dict[str, dict[str, Builder]] = {
    "forward": {
        "nn.Linear": partial(_module, layers.plain),
        ONE: partial(_module, partial(_ours, "Invertible", 1)),
        FOUR: partial(_module, partial(_ours, "Invertible", 4)),
        ORTHOGONAL: partial(_module, partial(_ours, "Orthogonal", 1)),
        LU: partial(_module, peers.lu_linear),
        "torch Cayley": partial(_module, _cayley),
        "torch matrix_exp": partial(_module, _matrix_exp),
    },
    "inverse": {
        ONE: partial(_solve, "Invertible", 1),
        FOUR: partial(_solve, "Invertible", 4),
        ORTHOGONAL: partial(_rows_only, "Orthogonal", 1),
        LU: partial(_inverse, peers.lu_linear),
        DENSE: partial(_inverse, peers.Dense),
    },
    "logabsdet": {
        ONE: partial(_logabsdet, 1),
        FOUR: partial(_logabsdet, 4),
        LU: _lu_logabsdet,
        DENSE: _dense_logabsdet,
    },
    "merge": {
        ONE: partial(_merge, "Invertible", 1),
        FOUR: partial(_merge, "Invertible", 4),
        ORTHOGONAL: partial(_merge, "Orthogonal", 1),
        "inverse and slogdet afresh": _recompute,
    },
    "memory": {
        "nn.Linear": plain_peak,
        ONE: partial(_peak, "Invertible", 1),
        FOUR: partial(_peak, "Invertible", 4),
        ORTHOGONAL: partial(_peak, "Orthogonal", 1),
        LU: partial(_peer_peak, peers.lu_linear),
        DENSE: partial(_peer_peak, peers.Dense),
        "torch Cayley": partial(_peer_peak, _cayley),
    },
}
