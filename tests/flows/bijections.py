"""The table of bijections that every check of flows runs on: name -> (factory, features)."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

import p4torch as p4
from p4torch.flows import (
    AffineCoupling,
    BentIdentity,
    Bijection,
    Chain,
    Inverse,
    InverseSoftplus,
    InvertibleLinear,
    InvertibleMLP,
    Log,
    Logit,
    Partial,
    Spline,
    SplineCoupling,
    Standardize,
    Swap,
)

M = TypeVar("M", bound=nn.Module)

#: Where the bent identity maps -1 and 2 to.
BENT = ((2**0.5 - 1) / 2 - 1, (5**0.5 - 1) / 2 + 2)

BIJECTIONS: dict[str, tuple[Callable[[], Bijection], int]] = {
    "bent-identity": (BentIdentity, 3),
    "inverse bent-identity": (lambda: Inverse(BentIdentity()), 3),
    "swap": (lambda: Swap(4), 4),
    "swap, odd": (lambda: Swap(5), 5),
    "coupling": (lambda: AffineCoupling(4, hidden=(8, 8)), 4),
    "coupling, odd, no hidden layer": (lambda: AffineCoupling(5, hidden=(), activation=nn.Tanh), 5),
    "spline coupling": (lambda: SplineCoupling(4, moved=(0, 2), hidden=(8,)), 4),
    "spline coupling, angles": (lambda: SplineCoupling(5, (1, 4), circular=(0, 1), hidden=(), bins=3), 5),
    "spline": (lambda: Spline(3), 3),
    "spline, one feature": (lambda: Spline(1, bins=3), 1),
    "spline, angles": (lambda: Spline(3, circular=(1, 2)), 3),
    "sigmoid, bent, logit": (lambda: Chain([Inverse(Logit(-1.0, 2.0)), BentIdentity(), Logit(*BENT)]), 3),
    "exponential and softplus": (lambda: Chain([Inverse(Log()), InverseSoftplus()]), 3),
    "standardize": (lambda: fitted(Standardize(3), torch.tensor([[1.0, -2e-3, 500], [2.0, 1e-3, 900]])), 3),
    "linear": (lambda: InvertibleLinear(4, rank=1), 4),
    "linear, all": (lambda: InvertibleLinear(4), 4),
    "linear, blocks": (lambda: InvertibleLinear(5, block=2, init="orthogonal"), 5),
    "linear, exponential blocks": (lambda: InvertibleLinear(5, form="exponential", block=2), 5),
    "linear, no bias, rank 2": (lambda: InvertibleLinear(4, bias=False, rank=2, init="orthogonal"), 4),
    "linear, exponential, reversed": (lambda: InvertibleLinear(4, rank=2, form="exponential", init="reverse"), 4),
    "linear, given matrix": (lambda: InvertibleLinear(3, init=torch.diag(torch.tensor([1.0, -2.0, 3.0]))), 3),
    "orthogonal": (lambda: InvertibleLinear(4, rank=2, property=p4.Orthogonal), 4),
    "orthogonal, reflected": (
        lambda: InvertibleLinear(3, init=-torch.eye(3), property=p4.Orthogonal, bias=False),
        3,
    ),
    "unit determinant": (lambda: InvertibleLinear(4, rank=1, property=p4.UnitDeterminant), 4),
    "unit determinant, all": (lambda: InvertibleLinear(4, property=p4.UnitDeterminant), 4),
    "circulant": (lambda: InvertibleLinear(4, property=p4.LinearSubspace, kind="circulant"), 4),
    "circulant, odd": (lambda: InvertibleLinear(5, property=p4.LinearSubspace, kind="circulant", bias=False), 5),
    "circulant, large": (lambda: InvertibleLinear(260, property=p4.LinearSubspace, kind="circulant"), 260),
    "triangular": (lambda: InvertibleLinear(4, property=p4.LinearSubspace, kind="lower"), 4),
    "linear, by LAPACK": (lambda: InvertibleLinear(4, rank=2, property=p4.LowRankUpdate), 4),
    "symplectic": (lambda: InvertibleLinear(4, rank=1, property=p4.Symplectic), 4),
    "symplectic, all": (lambda: InvertibleLinear(4, property=p4.Symplectic), 4),
    "complex, unitary": (lambda: InvertibleLinear(3, rank=2, property=p4.Unitary, dtype=torch.complex128), 3),
    "complex": (lambda: InvertibleLinear(3, property=p4.LowRankUpdate, dtype=torch.complex128), 3),
    "mlp": (lambda: InvertibleMLP(2, depth=6), 2),
    "mlp, odd depth, rank 2": (lambda: InvertibleMLP(3, depth=5, rank=2), 3),
    "mlp, one layer": (lambda: InvertibleMLP(2, depth=1), 2),
    "mlp, exponential": (lambda: InvertibleMLP(2, depth=4, form="exponential"), 2),
    "partial": (lambda: Partial(5, (3, 0, 4), InvertibleLinear(3, rank=2)), 5),
    "partial, all features": (lambda: Partial(4, range(4), AffineCoupling(4, hidden=(8,))), 4),
    "chain": (lambda: Chain([AffineCoupling(4, hidden=(8,)), Swap(4), InvertibleLinear(4)]), 4),
}

#: Those that take a context, of 3 features.
CONDITIONAL: dict[str, tuple[Callable[[], Bijection], int]] = {
    "coupling": (lambda: AffineCoupling(4, hidden=(8, 8), context=3), 4),
    "coupling, odd, no hidden layer": (lambda: AffineCoupling(5, hidden=(), activation=nn.Tanh, context=3), 5),
    "coupling, one feature": (lambda: AffineCoupling(1, hidden=(8,), context=3), 1),
    "spline coupling": (lambda: SplineCoupling(4, moved=(0, 2), hidden=(8,), context=3), 4),
    "spline coupling, angles": (lambda: SplineCoupling(5, (1, 4), (0, 1), hidden=(), bins=3, context=3), 5),
    "spline coupling, all features": (lambda: SplineCoupling(2, (0, 1), hidden=(8,), context=3), 2),
    "linear, shift": (lambda: InvertibleLinear(4, context=3, context_hidden=()), 4),
    "linear, rank 1": (lambda: InvertibleLinear(4, rank=1, context=3, context_rank=1), 4),
    "linear, rank 2": (lambda: InvertibleLinear(4, rank=2, context=3, context_rank=2, context_hidden=(8, 8)), 4),
    "linear, no bias": (lambda: InvertibleLinear(3, bias=False, context=3, context_rank=3), 3),
    "linear, one feature": (lambda: InvertibleLinear(1, context=3, context_rank=1), 1),
    "orthogonal": (lambda: InvertibleLinear(4, property=p4.Orthogonal, context=3, context_rank=1), 4),
    "partial": (lambda: Partial(5, (3, 0, 4), AffineCoupling(3, hidden=(8,), context=3)), 5),
    "inverse": (lambda: Inverse(InvertibleLinear(4, context=3, context_rank=2)), 4),
    "chain": (
        lambda: Chain([AffineCoupling(4, (8,), context=3), Swap(4), AffineCoupling(4, (8,)), InvertibleLinear(4)]),
        4,
    ),
}


def fitted(bijection: Bijection, x: torch.Tensor) -> Bijection:
    """The bijection, after it has been fitted to these points."""
    bijection.fit_scale(x)
    return bijection


def randomized(module: M, size: float) -> M:
    """The module, with all that trains away from where it starts."""
    with torch.no_grad():
        for value in module.parameters():
            if value.requires_grad:
                value.add_(size * torch.randn_like(value))
    return module
