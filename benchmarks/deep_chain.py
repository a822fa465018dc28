"""One training step of a deep flow of tiny layers: one batched perturbation against a chain of `nn.Linear`.

    python benchmarks/deep_chain.py [--depth 200] [--features 2] [--batch 256] [--rounds 60]

Both sides compute z, log|det| of the activations, a loss and its backward pass; the p4torch side also log|det| of all
weights, which the plain chain leaves out. They run alternately in one process, on one thread (for tensors this small,
more threads only wait for each other). Printed: medians with quartiles, and the ratio of medians with the quartiles of
the ratios of neighbouring pairs.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import torch
from torch import nn

from p4torch.flows import BentIdentity, Flow, InvertibleMLP, StandardNormal


def plain_chain(depth: int, features: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The loss of `depth` `nn.Linear` layers with the same activations."""
    layers = [nn.Linear(features, features) for _ in range(depth)]
    for layer in layers:
        nn.init.eye_(layer.weight)
    activation, base = BentIdentity(), StandardNormal(features)

    def loss(x: torch.Tensor) -> torch.Tensor:
        total = x.new_zeros(())
        for index, layer in enumerate(layers):
            x, logabsdet = (activation.inverse if index % 2 else activation.forward)(layer(x))
            total = total + logabsdet
        return -(base.log_prob(x) + total).mean()

    return loss


def seconds(loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    start = time.perf_counter()
    loss(x).backward()
    return time.perf_counter() - start


def quartiles(values: torch.Tensor) -> list[float]:
    return [round(float(value), 4) for value in values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("depth", 200), ("features", 2), ("batch", 256), ("rounds", 60)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    flow = Flow(InvertibleMLP(options.features, options.depth), StandardNormal(options.features))
    sides = (lambda x: -flow.log_prob(x).mean(), plain_chain(options.depth, options.features))
    x = torch.randn(options.batch, options.features)
    for side in sides * 3:
        seconds(side, x)
    times = torch.tensor(
        [[1e3 * seconds(side, x) for side in sides] for _ in range(options.rounds)], dtype=torch.float64
    )
    ours, plain = times.unbind(1)
    result = {
        **vars(options),
        "p4torch_ms": quartiles(ours),
        "plain_ms": quartiles(plain),
        "ratio_of_medians": round(float(ours.median() / plain.median()), 4),
        "pair_ratios": quartiles(ours / plain),
        "threads": 1,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
