"""The two tasks of `examples.recurrent`: copying over a long delay, and digits read pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from examples.recurrent_network import Network
from p4torch.parametrize.sites import counter_based_generator

Batch = tuple[Tensor, Tensor]


class Task(Protocol):
    """What is trained on: a batch is a pure function of (seed, step)."""

    @property
    def baseline(self) -> float:
        """The loss of the best answer without memory."""

    def network(self, hidden: int) -> Network:
        """A fresh one, from torch's global generator."""

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Inputs `(t, m)` and targets."""

    def loss(self, network: Network, batch: Batch) -> Tensor:
        """The mean cross-entropy."""

    def held_out(self, network: Network) -> tuple[float, float]:
        """Loss and share of right answers on data that no step has seen."""


@dataclass(frozen=True)
class Copying:
    """`items` symbols out of 8, a blank `delay` steps long that ends with a signal, then say them again.

    The loss is the mean over all `delay` + 2 `items` positions. Without memory it is items · ln 8 / (delay + 2 items):
    blanks are certain, the rest is guessed.
    """

    delay: int = 200
    items: int = 10
    symbols: int = 8

    @property
    def baseline(self) -> float:
        return self.items * math.log(self.symbols) / (self.delay + 2 * self.items)

    def network(self, hidden: int) -> Network:
        return Network(hidden, self.symbols + 1, symbols=self.symbols + 2)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        generator = counter_based_generator(seed, "copying", step)
        said = torch.randint(1, self.symbols + 1, (self.items, size), generator=generator)
        x = torch.zeros(self.delay + 2 * self.items, size, dtype=torch.int64)
        y = torch.zeros_like(x)
        x[: self.items] = y[-self.items :] = said
        x[-self.items - 1] = self.symbols + 1
        return x, y

    def loss(self, network: Network, batch: Batch) -> Tensor:
        return F.cross_entropy(network(batch[0]).flatten(0, 1), batch[1].flatten())

    @torch.no_grad()
    def held_out(self, network: Network) -> tuple[float, float]:
        """On 256 sequences; right answers among the symbols said again."""
        x, y = self.batch(-1, 0, 256)
        logits = network(x)
        right = logits[-self.items :].argmax(-1) == y[-self.items :]
        return float(F.cross_entropy(logits.flatten(0, 1), y.flatten())), float(right.double().mean())


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, a pixel at a time, row by row; one in three is held out."""

    @property
    def baseline(self) -> float:
        return math.log(10)

    def network(self, hidden: int) -> Network:
        return Network(hidden, 10)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        x, y = digits()[0]
        chosen = torch.randint(len(y), (size,), generator=counter_based_generator(seed, "digits", step))
        return x[:, chosen], y[chosen]

    def loss(self, network: Network, batch: Batch) -> Tensor:
        return F.cross_entropy(network.last(batch[0]), batch[1])

    @torch.no_grad()
    def held_out(self, network: Network) -> tuple[float, float]:
        x, y = digits()[1]
        logits = network.last(x)
        return float(F.cross_entropy(logits, y)), float((logits.argmax(-1) == y).double().mean())


@cache
def digits() -> tuple[Batch, Batch]:
    """scikit-learn's digits, to train on and held out: pixels in [0, 1] `(64, m)`, and what they show `(m,)`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data).float().div(16).mT.contiguous(), torch.tensor(data.target).long()
    order = torch.randperm(len(y), generator=counter_based_generator(0, "digits", 0))
    test, train = order[: len(y) // 3], order[len(y) // 3 :]
    return (x[:, train], y[train]), (x[:, test], y[test])
