"""Models that are perturbed on the meta device, and get their values later."""

from __future__ import annotations

import pytest
import torch
from tests.constructors import PERTURBATIONS
from torch import Tensor, nn

import p4torch as p4
from p4torch.testing._cases import default_sample


class Holder(nn.Module):
    """One tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensor)

    def forward(self) -> Tensor:
        return self.weight


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_model_on_meta_takes_the_values_of_another(name: str) -> None:
    row, generator = PERTURBATIONS[name], torch.Generator().manual_seed(0)
    shape = row.options.get("shape", (6, 6))
    tensor = row.options.get("sample", default_sample(row.factory, shape))(generator)
    model = p4.perturb(Holder(tensor), "weight", row.factory)
    deferred = p4.perturb(Holder(tensor.to("meta")), "weight", row.factory)
    assert all(value.is_meta for value in (*deferred.parameters(), *deferred.buffers()))
    deferred = deferred.to_empty(device="cpu")
    deferred.load_state_dict(model.state_dict())
    assert torch.equal(deferred(), model())
    assert [value.requires_grad for value in deferred.parameters()] == [
        value.requires_grad for value in model.parameters()
    ]
    assert p4.merge(deferred)[0].merged == p4.merge(model)[0].merged
    assert torch.equal(deferred(), model())


def test_kernels_and_tied_weights_on_meta() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(4, 8, 2), nn.Linear(8, 8), nn.Linear(8, 8))
        model[2].weight = model[1].weight
        p4.perturb(model, "0.weight", p4.Orthogonal, rank=1)
        p4.perturb(model, "1.weight", p4.Invertible, rank=1)
    assert [site.base.is_meta for site in p4.sites(model)] == [True, True]
    assert model[0].weight.shape == (8, 4, 2, 2)
    assert model[2].parametrizations.weight is model[1].parametrizations.weight


def test_what_is_refused_leaves_a_model_on_meta_as_it_was() -> None:
    layer = nn.Linear(3, 4, device="meta")
    before = layer.weight
    with pytest.raises(p4.ArgumentError, match="square"):
        p4.perturb(layer, "weight", p4.Invertible)
    assert layer.weight is before and type(layer) is nn.Linear
