"""What is learned: a model that is the same at each call, batches that depend on (seed, step) alone, and a loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch
from examples.recurrent_tasks import Copying
from torch import Tensor, nn
from torch.nn import functional as F

from p4torch.parametrize.sites import counter_based_generator
from p4torch.properties._math.volume import unit_volume

Batch = tuple[Tensor, Tensor]
BATCH = 256

#: |T - W|²_F / n of a target that is a small update of the start, and the rank of that update.
UPDATE, UPDATE_RANK = 0.1, 8


class Problem(Protocol):
    """One seed of a problem."""

    @property
    def tensor(self) -> str:
        """The name of the tensor that is constrained."""

    @property
    def clip(self) -> float | None:
        """The largest norm of the whole gradient."""

    def model(self) -> nn.Module:
        """A fresh one; it seeds torch's global generator."""

    def batch(self, step: int) -> Batch:
        """Inputs and targets."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """What is minimized."""


@dataclass(frozen=True)
class Linear:
    """A linear layer under the mean squared error: what the problems below have in common."""

    features: int
    seed: int
    tensor: str = "weight"
    clip: float | None = None

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return nn.Linear(self.features, self.features)

    def rows(self, step: int) -> Tensor:
        """Fresh standard normal ones `(m, n)`."""
        return torch.randn(BATCH, self.features, generator=counter_based_generator(self.seed, "rows", step))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])


@dataclass(frozen=True)
class Flip(Linear):
    """x reversed. With `unit_determinant` the start has determinant 1 (torch's, a row negated if need be, scaled)."""

    unit_determinant: bool = False

    @torch.no_grad()
    def model(self) -> nn.Module:
        layer = super().model()
        if self.unit_determinant:
            weight: Tensor = layer.weight  # type: ignore[assignment]
            if torch.linalg.slogdet(weight)[0] < 0:
                weight[0].neg_()
            weight.copy_(unit_volume(weight))
        return layer

    def batch(self, step: int) -> Batch:
        x = self.rows(step)
        return x, x.flip(-1)


@dataclass(frozen=True)
class Points(Linear):
    """A rotation from `count` points that are the same in each step; the loss is a sum. The start is orthogonal."""

    count: int = 30

    def model(self) -> nn.Module:
        layer = nn.Linear(self.features, self.features, bias=False)
        return _started(layer, rotation(self.features, self.seed), self.seed)

    def batch(self, step: int) -> Batch:
        return points(self.features, self.count, self.seed)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch[0]) - batch[1]).square().sum()


@dataclass(frozen=True)
class Teacher(Linear):
    """x Wᵀ -> x Tᵀ; the loss is E|x (W - T)ᵀ|² / n = |W - T|²_F / n. W starts at the identity or at a rotation; T is
    another rotation, or the start and a small update of rank 8."""

    start: Literal["identity", "rotation"] = "rotation"
    target: Literal["rotation", "update"] = "rotation"

    def first(self) -> Tensor:
        """The start."""
        return torch.eye(self.features) if self.start == "identity" else rotation(self.features, self.seed)

    def teacher(self) -> Tensor:
        """T."""
        if self.target == "rotation":
            return rotation(self.features, self.seed + 1000)
        return self.first() + update(self.features, self.seed)

    def model(self) -> nn.Module:
        return _started(nn.Linear(self.features, self.features, bias=False), self.first(), self.seed)

    def batch(self, step: int) -> Batch:
        x = self.rows(step)
        return x, x @ self.teacher().mT

    @torch.no_grad()
    def distance(self, model: nn.Module) -> float:
        """|W - T|²_F / n."""
        weight: Tensor = model.weight  # type: ignore[assignment]
        return float((weight - self.teacher()).square().sum()) / self.features


@dataclass(frozen=True)
class Recurrent:
    """The copying task of `examples.recurrent`."""

    seed: int
    task: Copying
    hidden: int = 128
    size: int = 32
    tensor: str = "recurrent"
    clip: float | None = 1.0

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.task.network(self.hidden)

    def batch(self, step: int) -> Batch:
        return self.task.batch(self.seed, step, self.size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.loss(model, batch)  # type: ignore[arg-type]


@torch.no_grad()
def _started(layer: nn.Linear, weight: Tensor, seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    layer.weight.copy_(weight)
    return layer


@cache
def rotation(features: int, seed: int) -> Tensor:
    """A random matrix of SO(n)."""
    generator = counter_based_generator(seed, "rotation", features)
    matrix = nn.init.orthogonal_(torch.empty(features, features), generator=generator)
    if torch.linalg.slogdet(matrix)[0] < 0:
        matrix[0].neg_()
    return matrix


@cache
def update(features: int, seed: int) -> Tensor:
    """A random matrix of low rank, with |.|²_F / n as `UPDATE` says."""
    generator = counter_based_generator(seed, "update", features)
    left, right = torch.randn(2, features, UPDATE_RANK, generator=generator)
    product = left @ right.mT
    return product * (UPDATE * features) ** 0.5 / product.norm()


@cache
def points(features: int, count: int, seed: int) -> Batch:
    """Uniform in (0, 1), and where a rotation takes them."""
    x = torch.rand(count, features, generator=counter_based_generator(seed, "points", count))
    return x, x @ rotation(features, seed + 1000)
