"""Export and forward-mode derivatives of perturbed layers: batches of any size, and plain operations."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tests.flows.bijections import randomized
from torch import nn

import p4torch as p4

#: A float32 sum in another order.
ROUNDING = 1e-4
#: The layer's size, and what perturbs it. Between the batches below, the faster way changes from one to the other.
LAYERS: dict[str, tuple[int, Any]] = {
    "orthogonal": (64, partial(p4.Orthogonal, rank=2)),
    "orthogonal, blocks": (256, partial(p4.Orthogonal, block=16)),
    "orthogonal, all": (16, p4.Orthogonal),
    "invertible": (64, partial(p4.Invertible, rank=2)),
    "invertible, blocks": (256, partial(p4.Invertible, block=16)),
    "unit determinant": (64, partial(p4.UnitDeterminant, rank=2)),
    "low-rank update": (512, partial(p4.LowRankUpdate, rank=4)),
    "spectral bound": (300, partial(p4.SpectralBound, rank=2)),
    "symplectic": (16, partial(p4.Symplectic, rank=1)),
    "positive definite": (16, partial(p4.PositiveDefinite, rank=1)),
    "fixed rank": (64, partial(p4.FixedRank, rank=3)),
    "stochastic": (16, partial(p4.Stochastic, floor=0)),
    "circulant": (16, partial(p4.LinearSubspace, kind="circulant")),
    "fixed singular values": (16, p4.FixedSingularValues),
}
BATCHES = (2, 7, 3000)


def model_of(name: str) -> tuple[nn.Sequential, int]:
    size, property = LAYERS[name]
    model = nn.Sequential(nn.Linear(size, size), nn.Tanh())
    nn.init.eye_(model[0].weight)
    if name == "fixed rank":
        nn.init.zeros_(model[0].weight[3:])
    return randomized(p4.perturb(model, "0.weight", property), 0.01), size  # type: ignore[return-value]


#: With torch 2.6, export cannot read the group that a class of rotations by blocks names.
ROTATIONS = ("orthogonal, blocks", "orthogonal, all", "fixed singular values")
OLD = torch.__version__.startswith("2.6.")


@pytest.mark.parametrize("name", [*LAYERS, "finalized"])
def test_an_exported_model_takes_batches_of_any_size(name: str) -> None:
    if OLD and name in ROTATIONS:
        pytest.skip("torch 2.6 does not export rotations by blocks")
    model, size = model_of("orthogonal" if name == "finalized" else name)
    if name == "finalized":
        p4.finalize(model)
    batch = torch.export.Dim("batch", min=1, max=100_000)
    exported = torch.export.export(model, (torch.randn(5, size),), dynamic_shapes=({0: batch},)).module()
    for count in BATCHES:
        x = torch.randn(count, size)
        torch.testing.assert_close(exported(x), model(x), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", LAYERS)
def test_forward_mode_is_reverse_mode(name: str) -> None:
    """⟨w, J t⟩ = ⟨Jᵀ w, t⟩, of the inputs and of B."""
    model, size = model_of(name)
    model.double()
    for site in p4.sites(model):  # what is tracked is refreshed in place, which no transform allows
        site.refresh()
    x, t = torch.randn(2, 5, size, dtype=torch.float64)
    b = {key: value.detach() for key, value in model.named_parameters() if value.requires_grad}
    tangents = {key: torch.randn_like(value) for key, value in b.items()}

    def call(b: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, b, (x,))

    y, forward = torch.func.jvp(call, (b, x), (tangents, t))
    _, pull_back = torch.func.vjp(call, b, x)
    w = torch.randn_like(y)
    grads, grad_x = pull_back(w)
    expected = (grad_x * t).sum() + sum((grads[key] * tangents[key]).sum() for key in b)
    torch.testing.assert_close((w * forward).sum(), expected, rtol=1e-7, atol=1e-7)
    rows = torch.func.jacfwd(lambda point: model(point))(x[0])
    torch.testing.assert_close(rows, torch.func.jacrev(lambda point: model(point))(x[0]), rtol=0, atol=1e-10)
