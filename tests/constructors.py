"""One table of constructors: every general check runs on every row. A new property adds a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import p4torch as p4


@dataclass(frozen=True)
class Row:
    """A factory, from a base tensor to a perturbation, and options of `check_perturbation` for it."""

    factory: Callable[[Tensor], p4.Perturbation]
    options: dict[str, Any] = field(default_factory=dict)


#: The cyclic group of three elements: exchanging three blocks of two, and turning a plane beside what it fixes.
CYCLE = torch.stack([torch.eye(6).roll(2 * shift, 0) for shift in range(3)])
TURNS = torch.stack(
    [
        torch.block_diag(torch.matrix_exp(torch.tensor([[0.0, -t], [t, 0.0]], dtype=torch.float64)), torch.eye(2))
        for t in (0.0, 2 * torch.pi / 3, 4 * torch.pi / 3)
    ]
)

PERTURBATIONS: dict[str, Row] = {
    "invertible": Row(p4.Invertible),
    "invertible-2x2": Row(p4.Invertible, {"shape": (2, 2), "compile": False}),
    "invertible-rank3": Row(partial(p4.Invertible, rank=3)),
    "invertible-batched": Row(p4.Invertible, {"shape": (3, 4, 4), "batch": False, "compile": False}),
    "invertible-exponential": Row(partial(p4.Invertible, form="exponential")),
    "invertible-exponential-rank2": Row(partial(p4.Invertible, form="exponential", rank=2), {"compile": False}),
    "orthogonal": Row(p4.Orthogonal, {"tangent": 5}),  # k = 1: V dUᵀ - dU Vᵀ vanishes for dU along V
    "orthogonal-rank2": Row(partial(p4.Orthogonal, rank=2)),
    "orthogonal-batched": Row(
        partial(p4.Orthogonal, rank=2), {"shape": (3, 4, 4), "batch": False, "compile": False, "steps": 300}
    ),
    "stiefel-tall": Row(partial(p4.Orthogonal, rank=2), {"shape": (7, 3), "compile": False}),
    "stiefel-wide": Row(p4.Orthogonal, {"shape": (3, 7), "tangent": 6, "compile": False}),
    "unit-determinant": Row(p4.UnitDeterminant, {"tangent": 5}),  # k(n - k)
    "unit-determinant-rank2": Row(partial(p4.UnitDeterminant, rank=2), {"compile": False}),
    "unit-determinant-2x2": Row(p4.UnitDeterminant, {"shape": (2, 2), "tangent": 1, "compile": False, "steps": 300}),
    "low-rank-update": Row(p4.LowRankUpdate, {"shape": (4, 7), "tangent": 4, "steps": 300}),
    "low-rank-update-rank2": Row(partial(p4.LowRankUpdate, rank=2), {"compile": False, "steps": 300}),
    "spectral-bound": Row(p4.SpectralBound),  # bound: the base's own norm, so that merges clip
    "spectral-bound-scale": Row(
        partial(p4.SpectralBound, bound=1.0, rank=2, method="scale"), {"shape": (7, 4), "compile": False}
    ),
    "spectral-bound-slack": Row(
        partial(p4.SpectralBound, bound=100.0, rank=2), {"shape": (4, 7), "compile": False, "steps": 300}
    ),
    "symmetric": Row(partial(p4.LinearSubspace, kind="symmetric")),
    "symmetric-rank2": Row(partial(p4.LinearSubspace, kind="symmetric", rank=2), {"compile": False, "steps": 300}),
    "skew": Row(partial(p4.LinearSubspace, kind="skew"), {"tangent": 5}),  # v vᵀ is not skew
    "skew-rank2": Row(partial(p4.LinearSubspace, kind="skew", rank=2), {"compile": False, "steps": 300}),
    "circulant": Row(partial(p4.LinearSubspace, kind="circulant")),
    "circulant-odd": Row(partial(p4.LinearSubspace, kind="circulant"), {"shape": (5, 5), "compile": False}),
    "toeplitz": Row(partial(p4.LinearSubspace, kind="toeplitz"), {"tangent": 11}),
    "toeplitz-wide": Row(
        partial(p4.LinearSubspace, kind="toeplitz"), {"shape": (3, 5), "tangent": 7, "compile": False, "steps": 300}
    ),
    "lower": Row(partial(p4.LinearSubspace, kind="lower")),
    "upper": Row(partial(p4.LinearSubspace, kind="upper", rank=2), {"compile": False, "steps": 300}),
    "masked": Row(
        partial(p4.LinearSubspace, mask=torch.ones(4, 7, dtype=torch.bool).triu(1)),
        {"shape": (4, 7), "tangent": 4, "steps": 300},
    ),
    "equivariant": Row(partial(p4.LinearSubspace, group=CYCLE)),
    "equivariant-pair": Row(
        partial(p4.LinearSubspace, group=(TURNS, CYCLE)),
        {"shape": (4, 6), "tangent": 4, "compile": False, "steps": 300},
    ),
}
