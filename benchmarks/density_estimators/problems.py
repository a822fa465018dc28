"""Tables of numbers whose density is estimated: training batches, validation and test points."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from p4torch.parametrize.sites import counter_based_generator

#: Points of a batch, for each way and problem alike.
BATCH = 256
#: Of tables that can be drawn from: training, validation and test points.
DRAWN = (20_000, 2_000, 5_000)
#: Shares of small tables that are validation and test points.
HELD = 0.2
#: Seeds of data, no training seeds.
_DATA_SEED = 2**31

Split = tuple[Tensor, ...]


@dataclass(frozen=True)
class Problem:
    """Points `(rows, n)` of three sets, with contexts `(rows, c)` if there are any.

    Whole numbers get uniform noise, new in every batch: log-likelihoods are then lower bounds of those of the numbers.
    """

    training: Tensor
    validation: Tensor
    test: Tensor
    contexts: tuple[Tensor, Tensor, Tensor] | None = None
    whole: bool = False

    @property
    def features(self) -> int:
        return self.training.shape[-1]

    @property
    def context_features(self) -> int:
        return 0 if self.contexts is None else self.contexts[0].shape[-1]

    def batch(self, seed: int, step: int) -> Split:
        """(x,) or (x, context): a pure function of seed and step, so that all ways see the same."""
        generator = counter_based_generator(seed, "batches", step)
        chosen = torch.randint(len(self.training), (min(BATCH, len(self.training)),), generator=generator)
        x = self.training[chosen]
        if self.whole:
            x = x + torch.rand(x.shape, generator=generator)
        return (x,) if self.contexts is None else (x, self.contexts[0][chosen])

    def held_out(self, name: str) -> Split:
        """All of "validation" or "test", or of "training", the noise always the same."""
        x: Tensor = getattr(self, name)
        if self.whole:
            x = x + torch.rand(x.shape, generator=counter_based_generator(_DATA_SEED, f"noise/{name}", 0))
        index = ("training", "validation", "test").index(name)
        return (x,) if self.contexts is None else (x, self.contexts[index])


def toy() -> Problem:
    """Ten features: a mixture of five Gaussians, pushed through a shear, a bend and a rotation."""
    generator = counter_based_generator(_DATA_SEED, "toy", 0)
    centres, scales = 2 * torch.randn(5, 10, generator=generator), 0.2 + torch.rand(5, 10, generator=generator)
    rotation = torch.linalg.qr(torch.randn(10, 10, generator=generator))[0]
    kind = torch.randint(5, (sum(DRAWN),), generator=generator)
    z = centres[kind] + scales[kind] * torch.randn(sum(DRAWN), 10, generator=generator)
    a, b = z.split(5, dim=-1)
    b = b * (a.sin() / 2).exp() + a.square() / 4
    x = torch.cat([a, b], dim=-1) @ rotation
    return _split(x + x.tanh())


def small_table(name: str, whole: bool = False) -> Callable[[], Problem]:
    """A table of scikit-learn's, in a fixed random order."""

    def load() -> Problem:
        from sklearn import datasets

        x = torch.tensor(getattr(datasets, f"load_{name}")().data, dtype=torch.float32)
        x = x[torch.randperm(len(x), generator=counter_based_generator(_DATA_SEED, name, 0))]
        held = round(HELD * len(x))
        training, validation, test = x.split([len(x) - 2 * held, held, held])
        return Problem(training, validation, test, whole=whole)

    return load


def image_patches() -> Problem:
    """8 x 8 patches of photographs without their means, as `experiments.patches` makes them: fewer, noise fixed."""
    from experiments.patches.data import patches

    data = patches()
    training = data.batches(_DATA_SEED, 0, 1, DRAWN[0])[0]
    validation, test = (data.held_out(name).flatten(0, 1) for name in ("validation", "test"))
    return Problem(training, validation, test)


def moons() -> Problem:
    """Two half circles, turned by an angle, which is the context."""
    generator = counter_based_generator(_DATA_SEED, "moons", 0)
    count = sum(DRAWN)
    along, upper = math.pi * torch.rand(count, generator=generator), torch.rand(count, generator=generator) < 0.5
    side = torch.where(upper, 1.0, -1.0)
    x = torch.stack([side * along.cos() + torch.where(upper, -0.5, 0.5), side * along.sin() - side * 0.25], dim=-1)
    x = x + 0.1 * torch.randn(count, 2, generator=generator)
    angle = math.pi * (2 * torch.rand(count, 1, generator=generator) - 1)
    (first, second), cos, sin = x.split(1, dim=-1), angle.cos(), angle.sin()
    x = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return _split(x, angle)


def _split(x: Tensor, context: Tensor | None = None) -> Problem:
    training, validation, test = x.split(DRAWN)
    if context is None:
        return Problem(training, validation, test)
    first, second, third = context.split(DRAWN)
    return Problem(training, validation, test, contexts=(first, second, third))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "moons": moons,
    "wine": small_table("wine"),
    "breast-cancer": small_table("breast_cancer"),
    "toy": toy,
    "digits": small_table("digits", whole=True),
    "patches": image_patches,
}
