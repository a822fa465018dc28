"""Certified classifiers: scikit-learn's digits by networks of Lipschitz constant 1, convolutional and dense, and how
many of the images stay right whatever is done to them within a radius.

    python -m examples.certified --out runs/certified
    python -m examples.certified --short --out runs/certified-short    # seconds

An image of 8 x 8 pixels in [0, 1] is certified at radius r if it is classified right, and the largest logit is above
all others by √2 L r, L the network's constant: no change of Euclidean length r alters the class then. L is the
certified bound of `p4.LipschitzNetwork`, and for torch's `orthogonal` the product of the norms, by SVD. All networks
have |x| between their layers, which keeps lengths of gradients, and are trained by cross-entropy of their logits times
a temperature, with the same batches and Adam.

Source: Tsuzuku, Sato and Sugiyama (2018), Lipschitz-margin training, for the certificate.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import p4torch as p4
from examples.recurrent_tasks import digits
from examples.scaffold import Fit, Job, Row, run_setting, train
from p4torch.parametrize.sites import counter_based_generator
from p4torch.runs.runner import Results

MODULE = "examples.certified"

RADIUS = 0.25


@dataclass(frozen=True)
class Setting:
    """The size of everything."""

    steps: int = 1000
    batch: int = 64
    rate: float = 1e-3
    temperature: float = 4.0
    record: int = 100


SHORT = Setting(steps=10, batch=8, record=5)


def absolute() -> nn.Module:
    """|x|."""
    return nn.LeakyReLU(-1.0)


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), absolute(), nn.Linear(64, 64), absolute(), nn.Linear(64, 10))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        absolute(),
        nn.Conv2d(16, 32, 2, stride=2),
        absolute(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def orthogonal(network: nn.Sequential) -> nn.Module:
    """Every layer of norm 1, by torch."""
    for layer in network:
        if isinstance(layer, nn.Linear):
            parametrizations.orthogonal(layer)
    return network


def bounded(network: nn.Sequential) -> nn.Module:
    """Of constant 1, by p4torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", p4.ProjectionWarning)  # a start above the bound is scaled
        return p4.LipschitzNetwork(network, 1.0, input_shape=(1, 8, 8))


METHODS: dict[str, Callable[[], nn.Module]] = {
    "p4.LipschitzNetwork, convolutional": lambda: bounded(convolutional()),
    "p4.LipschitzNetwork, dense": lambda: bounded(dense()),
    "torch orthogonal, dense": lambda: orthogonal(dense()),
}


def images(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`(m, 1, 8, 8)` and what they show."""
    x, y = part
    return x.mT.reshape(-1, 1, 8, 8), y


class Trained(Fit):
    """One method. `curve` holds (step, seconds, cross-entropy of the batch)."""

    def __init__(self, method: str, setting: Setting, seed: int) -> None:
        super().__init__()
        self.method, self.setting, self.seed = method, setting, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = METHODS[method]()
        ours = isinstance(self.model, p4.LipschitzNetwork)
        parameters: Any = p4.parameter_groups(self.model) if ours else self.model.parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=setting.rate)
        if ours:
            self.scheduler = p4.MergeScheduler(self.model, self.optimizer, seed=seed)

    @property
    def note(self) -> str:
        return f"loss {self.curve[-1][2]:.3f}" if self.curve else ""

    def advance(self) -> None:
        x, y = images(digits()[0])
        generator = counter_based_generator(self.seed, "batch", self.step)
        chosen = torch.randint(len(y), (self.setting.batch,), generator=generator)
        loss = self.update(lambda: F.cross_entropy(self.setting.temperature * self.model(x[chosen]), y[chosen]))
        if self.step % self.setting.record == 0:
            self.curve.append((self.step, self.watch.seconds, float(loss)))

    def constant(self) -> float:
        """L, certified; the product of the layers' norms by SVD for torch's."""
        if isinstance(self.model, p4.LipschitzNetwork):
            return float(self.model.lipschitz_bound())
        weights = [layer.weight.detach().double() for layer in self.model.modules() if isinstance(layer, nn.Linear)]
        return float(torch.stack([torch.linalg.matrix_norm(weight, ord=2) for weight in weights]).prod())

    @torch.no_grad()
    def row(self) -> Row:
        x, y = images(digits()[1])
        logits, constant = self.model(x), self.constant()
        first, second = logits.topk(2, -1).values.unbind(-1)
        right = logits.argmax(-1) == y
        certified = right & (first - second >= 2**0.5 * constant * RADIUS)
        return {
            "method": self.method,
            "seed": self.seed,
            "steps": self.step,
            "parameters": sum(value.numel() for value in self.model.parameters() if value.requires_grad),
            "accuracy": float(right.double().mean()),
            "certified": float(certified.double().mean()),
            "constant": constant,
            "seconds": self.watch.seconds,
            "curve": self.curve,
        }


def table(rows: Sequence[Row], setting: Setting) -> str:
    """Means over seeds, and the range of what is certified."""
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"Adam at {setting.rate:g}, {setting.steps} steps of {setting.batch} images, temperature "
        f"{setting.temperature:g}, {seeds} seeds. Means (range) over seeds, on a third of the images, held out.",
        "",
        f"| network | trains | accuracy | certified at {RADIUS:g} | largest constant | ms a step |",
        "| --- " * 6 + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        same = [row for row in rows if row["method"] == method]
        certified = [row["certified"] for row in same]
        milliseconds = 1e3 * mean(row["seconds"] / row["steps"] for row in same)
        lines.append(
            f"| {method} | {same[0]['parameters']} | {mean(row['accuracy'] for row in same):.3f} | "
            f"{mean(certified):.3f} ({min(certified):.3f} to {max(certified):.3f}) | "
            f"{max(row['constant'] for row in same):.4f} | {milliseconds:.2f} |"
        )
    return "\n".join(lines) + "\n"


def work(setting: Setting, seeds: Sequence[int], out: Path, console: Console) -> Results:
    jobs = [
        Job(f"{number}-{seed}", f"{method}, seed {seed}", setting.steps, partial(Trained, method, setting, seed))
        for seed in seeds
        for number, method in enumerate(METHODS)
    ]
    rows = list(train(jobs, out, console, setting.record).values())
    return Results({"setting": asdict(setting), "rows": rows}, table(rows, setting), {})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return run_setting(MODULE, __doc__, "runs/certified", (Setting(), SHORT), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
