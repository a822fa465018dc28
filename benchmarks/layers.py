"""The layers under test, all started from the same matrix, and what counts as a training step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import p4torch as p4

BATCH = 256

#: Maps rows to (rows,), rows, or (rows, log|det|).
Outputs = Callable[[Tensor], Any]


class Missing(Exception):
    """Something to measure, or to compare with, is not there."""


@cache
def _rotation(features: int) -> Tensor:
    """A product of 8 reflections, in O(n²): it has determinant 1 and lies in all the sets."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(8, features, generator=generator, dtype=torch.float64)
    matrix = torch.eye(features, dtype=torch.float64)
    for vector in nn.functional.normalize(drawn, dim=-1):
        matrix = matrix.addr_(matrix @ vector, vector, alpha=-2)
    return matrix.float()


def rotation(features: int) -> Tensor:
    """A matrix of SO(n), the same one at each call."""
    return _rotation(features).clone()


def plain(features: int) -> nn.Linear:
    """`nn.Linear` with a rotation as its weight."""
    layer = nn.Linear(features, features)
    with torch.no_grad():
        layer.weight.copy_(rotation(features))
    return layer


def perturbed(property: str, features: int, rank: int) -> nn.Linear:
    """The same under a perturbation, a little away from B₀. Raises Missing."""
    kind = getattr(p4, property, None)
    if kind is None:
        raise Missing(f"p4torch has no {property}: row left out")
    options: dict[str, Any] = {"rank": rank}
    if property == "SpectralBound":
        options["at"] = "merge"  # the factored path: a step that certifies its norm is another thing
    bound = inspect.signature(kind).parameters.get("bound")
    if bound is not None and bound.default is inspect.Parameter.empty:
        options["bound"] = 2.0
    layer = plain(features)
    p4.perturb(layer, "weight", kind, **options)
    nudge(layer)
    return layer


@torch.no_grad()
def nudge(module: nn.Module) -> None:
    """Noise on everything that trains: nothing is zero, and no matrix moves by more than about 0.1 in norm."""
    for value in module.parameters():
        if value.requires_grad:
            size = 0.1 / max(value.shape, default=1)
            value.add_(size * torch.randn_like(value))


# --- what a layer gives ---------------------------------------------------------------------------------------

#: Properties whose determinant is known: a step gives log|det|, too. For the others only the rows are computed.
WITH_LOGABSDET = ("Invertible", "Orthogonal", "UnitDeterminant")


def forward_of(layer: nn.Linear, property: str) -> Outputs:
    """x Wᵀ + b of a perturbed layer, with log|det W| where the property has one."""
    if property not in WITH_LOGABSDET:
        return layer
    site = next(p4.sites(layer))
    perturbation, base = site.perturbation, site.base
    if isinstance(perturbation, p4.Invertible):
        return lambda x: perturbation.affine_logabsdet(base, x, layer.bias)
    return lambda x: (layer(x), perturbation.logabsdet(base))


def inverse_of(layer: nn.Linear) -> Outputs:
    """(z - b) W⁻ᵀ and log|det W|."""
    site = next(p4.sites(layer))
    return lambda z: solve_logabsdet(site.perturbation, site.base, z - layer.bias)


def solve_logabsdet(perturbation: p4.Perturbation, base: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """y W⁻ᵀ and log|det W|, in one call where there is one."""
    if isinstance(perturbation, p4.Invertible):
        return perturbation.solve_logabsdet(base, y)
    return perturbation.solve(base, y), perturbation.logabsdet(base)


# --- steps ----------------------------------------------------------------------------------------------------


def training_step(outputs: Outputs, module: nn.Module, features: int, batch: int = BATCH) -> Callable[[], None]:
    """Forward, log|det| if there is one, and backward, for a layer inside a network: the rows need a gradient, too.

    The gradient that comes from above is given, as it is by the layers above: no loss is timed.
    """
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(batch, features, generator=generator).requires_grad_()
    above = torch.randn(batch, features, generator=generator)
    parameters = [value for value in module.parameters() if value.requires_grad]
    minus_mean: list[Tensor] = []

    def step() -> None:
        rows.grad = None
        for value in parameters:
            value.grad = None
        result = outputs(rows)
        y, logabsdet = result if isinstance(result, tuple) else (result, None)
        if logabsdet is None or not logabsdet.requires_grad:
            y.backward(above)
            return
        if not minus_mean:
            minus_mean.append(torch.full_like(logabsdet, -1 / logabsdet.numel()))
        torch.autograd.backward((y, logabsdet), (above, minus_mean[0]))

    return step


def loss_step(loss: Callable[[], Tensor], module: nn.Module) -> Callable[[], None]:
    """A loss and its backward pass, for a whole network."""
    parameters = [value for value in module.parameters() if value.requires_grad]

    def step() -> None:
        for value in parameters:
            value.grad = None
        loss().backward()

    return step


def big_products(features: int, batch: int = BATCH) -> Callable[[], None]:
    """The floor: x Aᵀ and g A alone, into memory that is there. Any layer with a dense A has these two."""
    matrix, rows, above = rotation(features), torch.randn(batch, features), torch.randn(batch, features)
    y, back = torch.empty_like(rows), torch.empty_like(rows)

    def step() -> None:
        torch.mm(rows, matrix.mT, out=y)
        torch.mm(above, matrix, out=back)

    return step
