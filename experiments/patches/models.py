"""The models: one chain of linear layers and bent identities, and what its linear layers are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from experiments.patches.data import FEATURES
from experiments.patches.layers import DenseLinear, FixedLinear, LULinear, RelativeLinear
from p4torch.core.low_rank import Directions
from p4torch.flows import BentIdentity, Bijection, Chain, Flow, Inverse, InvertibleLinear, StandardNormal

#: The linear layers by model.
BASELINES: dict[str, Callable[[Tensor], Bijection]] = {
    "dense": DenseLinear,
    "lu": LULinear,
    "relative": RelativeLinear,
    "fixed": FixedLinear,
}
TITLES = {
    "p4inv": "P4Inv",
    "blocks": "P4Inv, blocks",
    "triangular": "P4Inv, triangular",
    "dense": "dense, slogdet",
    "lu": "LU",
    "relative": "relative gradient",
    "fixed": "biases alone",
}
MODELS = tuple(TITLES)

#: Of P4Inv, see `p4torch.Invertible`.
DIRECTIONS: tuple[str, ...] = get_args(Directions)


@dataclass(frozen=True)
class Variant:
    """A model; the merge interval is of P4Inv alone, rank and directions of its low-rank shape, the block of the other.
    A block of all coordinates is one of `FEATURES`."""

    model: str
    rank: int = 0
    every: int = 0
    directions: str = ""
    block: int = 0

    @property
    def name(self) -> str:
        """Short, for files."""
        if self.model == "blocks":
            return f"block{self.block}-every{self.every}"
        if self.model != "p4inv":
            return f"{self.model}-every{self.every}" if self.every else self.model
        return f"p4inv-rank{self.rank}-every{self.every}-{self.directions}"

    @property
    def title(self) -> str:
        """For people."""
        if self.model == "blocks":
            return f"{TITLES['p4inv']}, {block_title(self.block)}, N = {self.every}"
        if self.model != "p4inv":
            return f"{TITLES[self.model]}, N = {self.every}" if self.every else TITLES[self.model]
        return f"{TITLES[self.model]}, rank {self.rank}, N = {self.every}, {self.directions}"


def block_title(block: int) -> str:
    """For people."""
    return "all coordinates" if block == FEATURES else f"blocks of {block}"


def build(variant: Variant, layers: int) -> Flow:
    """W₁, a, W₂, a⁻¹, ..., W_L, with a the bent identity; all W start as random orthogonal matrices.

    The matrices are drawn first, from torch's global generator: with the same seed they are the same for all models.
    """
    starts = [nn.init.orthogonal_(torch.empty(FEATURES, FEATURES)) for _ in range(layers)]
    bijections: list[Bijection] = []
    for index, start in enumerate(starts):
        bijections += [_linear(variant, start), Inverse(BentIdentity()) if index % 2 else BentIdentity()]
    return Flow(Chain(bijections[:-1]), StandardNormal(FEATURES))


def _linear(variant: Variant, start: Tensor) -> Bijection:
    if variant.model in BASELINES:
        return BASELINES[variant.model](start)
    if variant.model == "blocks":
        return InvertibleLinear(FEATURES, form="relative", init=start, block=variant.block)
    if variant.model == "triangular":
        return InvertibleLinear(FEATURES, form="triangular", init=start)
    return InvertibleLinear(FEATURES, rank=variant.rank, init=start, directions=variant.directions)
