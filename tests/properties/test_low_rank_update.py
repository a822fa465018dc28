"""Low-rank updates of unconstrained tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import p4torch as p4

#: Two layers of float32 products.
ROUNDING = 1e-5


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3)])
def test_any_linear_layer_is_kept_and_given_back(shape: tuple[int, int]) -> None:
    layer = nn.Linear(*shape)
    weight = layer.weight.detach().clone()
    p4.perturb(layer, "weight", p4.LowRankUpdate, rank=2)
    assert torch.equal(layer.weight, weight)
    (site,) = p4.sites(layer)
    with torch.no_grad():
        site.perturbation.u.normal_()  # type: ignore[union-attr]
    weight = layer.weight.detach()
    assert p4.merge(layer)[0].ok
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=ROUNDING)
    assert type(p4.finalize(layer)) is nn.Linear


def test_merges_add_up_to_full_rank() -> None:
    base = torch.zeros(6, 6, dtype=torch.float64)
    perturbation = p4.LowRankUpdate(base)
    for _ in range(6):
        with torch.no_grad():
            perturbation.u.normal_()
        perturbation.merge(base)
    assert torch.linalg.matrix_rank(base) == 6


def test_complex_tensors() -> None:
    base = torch.randn(3, 4, dtype=torch.complex128)
    perturbation = p4.LowRankUpdate(base, scale=1.0)
    with torch.no_grad():
        perturbation.u.normal_()
    weight = perturbation(base).detach()
    torch.testing.assert_close(weight, base + perturbation.u @ perturbation.v.mT)
    assert perturbation.merge(base).ok
    torch.testing.assert_close(base, weight)


def test_bad_rank() -> None:
    with pytest.raises(p4.ArgumentError, match="`rank` must be an integer >= 1, got 0"):
        p4.LowRankUpdate(torch.eye(3), rank=0)
