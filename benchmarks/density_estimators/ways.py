"""What is compared: one-line models of p4torch, and those of zuko and nflows with their defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import load
from p4torch.flows import Flow, models


class Standardised(nn.Module):
    """A peer's density of features with mean 0 and standard deviation 1, as one of the features themselves."""

    mean: Tensor
    scale: Tensor

    def __init__(self, density: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.density = density
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("scale", x.std(0))

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        z = (x - self.mean) / self.scale
        log_prob: Tensor = self.density(z, *context)
        return log_prob - self.scale.log().sum()


class _Zuko(nn.Module):
    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        log_prob: Tensor = self.flow(*context).log_prob(x)
        return log_prob


class _Nflows(nn.Module):
    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        log_prob: Tensor = self.flow.log_prob(x, *context)  # type: ignore[operator]
        return log_prob


def zuko(name: str) -> Callable[[Tensor, int], nn.Module]:
    def build(x: Tensor, context: int) -> nn.Module:
        checks = torch.distributions.Distribution._validate_args  # importing zuko switches it off
        flow = getattr(load("zuko.flows"), name)(x.shape[-1], context)
        torch.distributions.Distribution.set_default_validate_args(checks)
        return Standardised(_Zuko(flow), x)

    return build


def nflows(x: Tensor, context: int) -> nn.Module:
    """Rational-quadratic couplings and LU layers. nflows has no default of the whole model: these are sbi's."""
    transforms, flows = load("nflows.transforms"), load("nflows.flows")
    nets, base = load("nflows.nn.nets"), load("nflows.distributions.normal")
    masks = load("nflows.utils.torchutils")
    features = x.shape[-1]

    def network(inputs: int, outputs: int) -> Any:
        return nets.ResidualNet(inputs, outputs, hidden_features=50, context_features=context or None, num_blocks=2)

    layers = []
    for index in range(5):
        mask = masks.create_alternating_binary_mask(features, even=index % 2 == 0)
        coupling = transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, network, num_bins=10, tails="linear", tail_bound=3.0
        )
        layers += [coupling, transforms.LULinear(features, identity_init=True)]
    flow = flows.Flow(transforms.CompositeTransform(layers), base.StandardNormal([features]))
    return Standardised(_Nflows(flow), x)


def ours(name: str) -> Callable[[Tensor, int], nn.Module]:
    def build(x: Tensor, context: int) -> nn.Module:
        flow: Flow = getattr(models, name)(x.shape[-1], context)
        flow.fit_scale(x, x.new_zeros(len(x), context) if context else None)  # scales depend on no context
        return flow

    return build


WAYS: dict[str, Callable[[Tensor, int], nn.Module]] = {
    "p4 NSF": ours("NSF"),
    "p4 RealNVP": ours("RealNVP"),
    "p4 MixingFlow": ours("MixingFlow"),
    "zuko MAF": zuko("MAF"),
    "zuko NSF": zuko("NSF"),
    "nflows RQ-NSF": nflows,
}
OURS = tuple(name for name in WAYS if name.startswith("p4"))
