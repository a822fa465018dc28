"""What is measured: every property, with options, from a base in its set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import p4torch as p4
from benchmarks.layers import Missing

#: Makes an `(n, n)` tensor near the set, in double precision; admission brings it into the set.
Start = Callable[[int, torch.Generator], Tensor]


def near_identity(features: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(features, features, generator=generator, dtype=torch.float64)
    return torch.eye(features, dtype=torch.float64) + 0.5 / features**0.5 * noise


def complex_near_identity(features: int, generator: torch.Generator) -> Tensor:
    return torch.complex(near_identity(features, generator), 0.5 * near_identity(features, generator))


def positive(features: int, generator: torch.Generator) -> Tensor:
    """Entries between 0.1 and 1."""
    return 0.1 + 0.9 * torch.rand(features, features, generator=generator, dtype=torch.float64)


def of_rank_8(features: int, generator: torch.Generator) -> Tensor:
    left, right = torch.randn(2, features, 8, generator=generator, dtype=torch.float64)
    return left @ right.mT / (8 * features) ** 0.5


def ring(features: int) -> dict[str, Any]:
    """Four rotations of a ring of points, n/4 at a time."""
    return {"group": torch.stack([torch.eye(features).roll(shift * features // 4, 0) for shift in range(4)])}


def band(features: int) -> dict[str, Any]:
    """A band of a quarter of the matrix."""
    ones = torch.ones(features, features, dtype=torch.bool)
    return {"mask": ones.triu(-features // 8) & ones.tril(features // 8)}


@dataclass(frozen=True)
class Subject:
    """A property with options; `sized` makes those that depend on n. `ranks` are the ones whose step is timed, none
    where the property has no rank."""

    kind: str
    title: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    sized: Callable[[int], Mapping[str, Any]] = lambda features: {}
    start: Start = near_identity
    ranks: tuple[int, ...] = (1, 4)

    @property
    def least_rank(self) -> int | None:
        return self.ranks[0] if self.ranks else None

    @property
    def largest_rank(self) -> int | None:
        return self.ranks[-1] if self.ranks else None

    @property
    def name(self) -> str:
        return self.kind + (f", {self.title}" if self.title else "")

    def element(self, features: int, rank: int | None, index: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """The index-th random element of S. Raises Missing."""
        drawn = self.start(features, torch.Generator().manual_seed(index))
        weight = self._layer(drawn.to(dtype.to_complex() if drawn.is_complex() else dtype), rank).weight
        return weight.detach()

    def layer(self, features: int, rank: int | None, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """A linear layer whose weight is perturbed, at B₀. Raises Missing."""
        return self._layer(self.element(features, rank, dtype=dtype), rank)

    def _layer(self, tensor: Tensor, rank: int | None) -> nn.Linear:
        kind = getattr(p4, self.kind, None)
        if kind is None:
            raise Missing(f"p4torch has no {self.kind}")
        layer = plain(tensor)
        options = {**self.options, **self.sized(len(tensor)), **({} if rank is None else {"rank": rank})}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", p4.ProjectionWarning)
            p4.perturb(layer, "weight", kind, **options)
        return layer


def plain(weight: Tensor) -> nn.Linear:
    """`nn.Linear` with this weight, of its dtype, without a bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


#: The paper's bounds of one merge, and none of the whole change.
PAPER_CHANGE = p4.DeterminantBounds(change=(-6.0, 15.5))

SUBJECTS = (
    Subject("Invertible", "additive", {"bounds": PAPER_CHANGE}),
    Subject("Invertible", "exponential", {"form": "exponential", "bounds": PAPER_CHANGE}),
    Subject("UnitDeterminant"),
    Subject("Orthogonal"),
    Subject("Unitary", start=complex_near_identity),
    Subject("Symplectic"),
    Subject("PositiveDefinite"),
    Subject("SpectralBound", options={"at": "merge"}),
    Subject("LowRankUpdate"),
    Subject("FixedRank", start=of_rank_8, ranks=(2, 8)),
    Subject("Stochastic", start=positive),
    Subject("Stochastic", "doubly", {"doubly": True}, start=positive),
    Subject("Nonnegative", start=positive, ranks=()),
    Subject("LinearSubspace", "symmetric", {"kind": "symmetric"}),
    Subject("LinearSubspace", "skew", {"kind": "skew"}),
    Subject("LinearSubspace", "circulant", {"kind": "circulant"}, ranks=()),
    Subject("LinearSubspace", "Toeplitz", {"kind": "toeplitz"}, ranks=()),
    Subject("LinearSubspace", "lower triangular", {"kind": "lower"}),
    Subject("LinearSubspace", "band mask", sized=band),
    Subject("LinearSubspace", "group of 4", sized=ring),
    Subject("FixedSpectrum"),
    Subject("FixedSingularValues", ranks=()),
    Subject("SpecialUnitary", start=complex_near_identity, ranks=()),
)
