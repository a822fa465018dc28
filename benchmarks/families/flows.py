"""Whole flows: the deep chain of tiny layers, the paper's RealNVP, and what mixing with linear layers costs there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks import layers
from benchmarks.measure import Effort, Side
from benchmarks.rows import Job, Row, compare
from p4torch.flows import (
    AffineCoupling,
    BentIdentity,
    Bijection,
    Chain,
    Flow,
    InvertibleLinear,
    InvertibleMLP,
    StandardNormal,
    Swap,
)

DEPTH, COUPLINGS, FEATURES, HIDDEN = 200, 50, 60, (60, 60)


def jobs() -> list[Job]:
    """Tensors are small here: one thread, more would only wait for each other."""
    return [Job("flows", "deep-chain", _deep_chain, cost=3), Job("flows", "realnvp", _realnvp, cost=10)]


# --- 200 layers of two features -------------------------------------------------------------------------------


class PlainChain(nn.Module):
    """`depth` `nn.Linear` layers with bent identities and log|det| of these; that of the weights is left out."""

    def __init__(self, features: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(features, features) for _ in range(depth))
        for layer in self.layers:
            nn.init.eye_(layer.weight)  # type: ignore[arg-type]
        self.activation, self.base = BentIdentity(), StandardNormal(features)

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(())
        for index, layer in enumerate(self.layers):
            x, logabsdet = (self.activation.inverse if index % 2 else self.activation.forward)(layer(x))
            total = total + logabsdet
        return self.base.log_prob(x) + total


def fit_step(flow: nn.Module, features: int) -> Side:
    """A training step by likelihood: -mean log p(x) of a batch, and backward."""
    layers.nudge(flow)
    x = torch.randn(layers.BATCH, features)
    return Side(layers.loss_step(lambda: -flow(x).mean(), flow))


def deep_step(depth: int = DEPTH) -> Side:
    """p4torch's side of the deep chain."""
    return fit_step(Flow(InvertibleMLP(2, depth, rank=1), StandardNormal(2)), 2)


def plain_deep_step(depth: int = DEPTH) -> Side:
    """The chain with an `nn.Linear` a layer."""
    return fit_step(PlainChain(2, depth), 2)


def _deep_chain(effort: Effort) -> list[Row]:
    plain = f"{DEPTH} nn.Linear(2, 2)"
    builders: dict[str, Callable[[], Side]] = {"p4torch": deep_step, plain: plain_deep_step}
    timed = compare(builders, effort, 1, features=2, batch=layers.BATCH)
    return [timed.row(f"InvertibleMLP(2, {DEPTH})", "p4torch", plain, bar="deep chain")]


# --- RealNVP --------------------------------------------------------------------------------------------------


class WrittenOutCoupling(Bijection):
    """`AffineCoupling` as one writes it down: two `nn.Sequential`, evaluated one after the other."""

    def __init__(self, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.kept = features - features // 2
        self.scale, self.shift = (_mlp([self.kept, *hidden, features // 2]) for _ in range(2))
        self.log_alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.kept], x[:, self.kept :]
        log_scale = torch.tanh(self.scale(a)) * self.log_alpha.exp()
        return torch.cat([a, b * log_scale.exp() + self.shift(a)], dim=-1), log_scale.sum(-1)


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        parts += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*parts[:-1])


def realnvp_step(coupling: Callable[[], Bijection], mixing: Callable[[], Bijection], count: int = COUPLINGS) -> Side:
    """A training step of couplings with something between them that mixes the features."""
    parts = [part for _ in range(count) for part in (coupling(), mixing())]
    return fit_step(Flow(Chain(parts), StandardNormal(FEATURES)), FEATURES)


def ours() -> Bijection:
    return AffineCoupling(FEATURES, HIDDEN)


def linear() -> Bijection:
    return InvertibleLinear(FEATURES, rank=1)


def swap() -> Bijection:
    return Swap(FEATURES)


def _realnvp(effort: Effort) -> list[Row]:
    builders: dict[str, Callable[[], Side]] = {
        "InvertibleLinear": lambda: realnvp_step(ours, linear),
        "Swap": lambda: realnvp_step(ours, swap),
        "written out": lambda: realnvp_step(lambda: WrittenOutCoupling(FEATURES, HIDDEN), swap),
    }
    timed = compare(builders, effort, 1, features=FEATURES, batch=layers.BATCH)
    name = f"{COUPLINGS} x AffineCoupling({FEATURES})"
    return [
        timed.row(f"{name} with InvertibleLinear", "InvertibleLinear", "Swap", bar="mixing"),
        timed.row(f"{name} with Swap", "Swap", "written out", bar="realnvp"),
    ]
