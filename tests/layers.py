"""Perturbed layers that several test files start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import p4torch as p4


def layer_of(width: int = 3, init: Callable[[Tensor], Tensor] = nn.init.orthogonal_, **options: Any) -> nn.Linear:
    """An `nn.Linear` under `Invertible`."""
    layer = nn.Linear(width, width)
    init(layer.weight)
    p4.perturb(layer, "weight", p4.Invertible, **options)
    return layer


def b_of(module: nn.Module) -> Any:
    """The perturbation of the first site."""
    return next(p4.sites(module)).perturbation
