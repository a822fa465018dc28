"""How many matrices are inverted when a property is put on: those that are tracked, and no more to check them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import p4torch as p4
from p4torch.core.perturbation import Perturbation

#: The tracked inverse is made with the perturbation, and refreshed from the base that is admitted.
MOST = 2


class Inversions(TorchDispatchMode):
    """Counts calls of LAPACK's inversion."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.linalg_inv_ex.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (p4.Invertible, {}),
        (p4.Invertible, {"block": 2}),
        (p4.Invertible, {"rank": 1}),
        (p4.Invertible, {"form": "triangular"}),
        (p4.UnitDeterminant, {}),
        (p4.UnitDeterminant, {"block": 2}),
        (p4.UnitDeterminant, {"rank": 1}),
        (p4.PositiveDefinite, {}),
        (p4.PositiveDefinite, {"block": 2}),
        (p4.PositiveDefinite, {"rank": 1}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
@pytest.mark.parametrize("determinant", [1.0, 8.0])
@pytest.mark.filterwarnings("ignore::p4torch.errors.ProjectionWarning")  # what UnitDeterminant makes of the second one
def test_a_base_is_inverted_twice_at_most(
    kind: type[Perturbation], options: dict[str, Any], determinant: float
) -> None:
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(8) + 0.05 * torch.ones(8, 8))
        layer.weight.mul_((determinant / torch.linalg.det(layer.weight)) ** (1 / 8))
    with Inversions() as inversions:  # type: ignore[no-untyped-call]
        p4.perturb(layer, "weight", kind, **options)
    assert 1 <= inversions.count <= MOST
