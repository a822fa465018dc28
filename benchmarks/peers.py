"""The peers from PyPI. Each is optional: what is missing is named, and its rows are left out."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layers import Missing, Outputs, nudge, plain, rotation, training_step
from benchmarks.measure import Side

PEERS = ("nflows", "normflows", "geotorch", "geoopt")


def load(module: str) -> Any:
    """Import a peer's module. Raises Missing, naming the package."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of theirs
            return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise Missing(f'peer {package} is missing: row left out (pip install -e ".[bench]")') from error


def versions() -> dict[str, str | None]:
    """Installed versions of the peers; None for those that are missing."""
    return {package: _version(package) for package in PEERS}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- invertible layers ----------------------------------------------------------------------------------------


class Dense(nn.Module):
    """The dense layer that flows start with: x Wᵀ + b with slogdet, back with solve and slogdet.

    It stands for nflows' `NaiveLinear`, whose inverse calls `torch.solve`, which torch no longer has.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(rotation(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.linear(x, self.weight, self.bias), torch.linalg.slogdet(self.weight)[1]

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return dense_inverse(self.weight, z - self.bias)


def dense_inverse(weight: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """y W⁻ᵀ and -log|det W| by `torch.linalg.solve` and `slogdet`, as nflows does: two factorisations."""
    return torch.linalg.solve(weight, y.mT).mT, -torch.linalg.slogdet(weight)[1]


def factored_inverse(weight: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same from one factorisation: what a careful user of dense matrices writes."""
    factors, pivots = torch.linalg.lu_factor(weight)
    return torch.linalg.lu_solve(factors, pivots, y.mT).mT, -factors.diagonal().abs().log().sum()


def lu_linear(features: int) -> nn.Module:
    """nflows' LULinear. At the identity, plus noise: a random one is too close to singular."""
    return _nudged(load("nflows.transforms.lu").LULinear(features, identity_init=True))


def lu_affine(features: int) -> nn.Module:
    """normflows' InvertibleAffine. Its `forward` leads from latent to data: turned around here."""
    return _nudged(_Turned(load("normflows.flows").InvertibleAffine(features, use_lu=True)))


class _Turned(nn.Module):
    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Any:
        return self.flow.inverse(x)

    def inverse(self, z: Tensor) -> Any:
        return self.flow(z)


def _nudged(module: nn.Module) -> nn.Module:
    nudge(module)
    return module


# --- orthogonal layers ----------------------------------------------------------------------------------------


def torch_orthogonal(features: int, kind: str) -> nn.Module:
    """torch's parametrization; `kind` is matrix_exp, cayley or householder."""
    layer = plain(features)
    return _moved(torch.nn.utils.parametrizations.orthogonal(layer, orthogonal_map=kind))


def geotorch_orthogonal(features: int) -> nn.Module:
    layer = plain(features)
    load("geotorch").orthogonal(layer, "weight")
    return _moved(layer)


@torch.no_grad()
def _moved(layer: nn.Module) -> nn.Module:
    """As after some training: the skew matrix has norm 1 or so. At the start it is 0, and its exponential cheap."""
    original: Tensor = layer.parametrizations.weight.original  # type: ignore[union-attr, assignment]
    original.add_(torch.randn_like(original) * 0.5 / original.shape[-1] ** 0.5)
    return layer


def geoopt_step(features: int) -> Side:
    """A plain product with a Stiefel parameter, and the step of RiemannianAdam: the optimizer is where geoopt keeps
    the constraint, so its step belongs to the cost."""
    geoopt = load("geoopt")
    weight = geoopt.ManifoldParameter(rotation(features), manifold=geoopt.EuclideanStiefel())
    bias = nn.Parameter(torch.zeros(features))
    module = nn.ParameterList([weight, bias])
    step = training_step(lambda x: nn.functional.linear(x, weight, bias), module, features)
    optimizer = geoopt.optim.RiemannianAdam([weight], lr=1e-4)

    def call() -> None:
        step()
        optimizer.step()

    return Side(call)


def step_of(build: Callable[[], nn.Module], features: int, direction: str = "forward") -> Side:
    """The training step of a peer's layer, in one direction."""
    module = build()
    outputs: Outputs = module if direction == "forward" else module.inverse  # type: ignore[assignment]
    return Side(training_step(outputs, module, features))
