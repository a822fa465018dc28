"""What is written into a perturbed weight would be lost: it is refused where torch lets us."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.layers import layer_of
from torch import Tensor, nn

import p4torch as p4

#: Of a weight that was made the base, in float32.
ROUNDING = 1e-6


def kernel() -> nn.Conv2d:
    return p4.perturb(nn.Conv2d(4, 4, 3), "weight", p4.LowRankUpdate, rank=2)


def data_iadd(layer: Any) -> None:
    layer.weight.data += 1.0


def data_assigned(layer: Any) -> None:
    layer.weight.data = torch.zeros_like(layer.weight)


def item_assigned(layer: Any) -> None:
    layer.weight[0] = 1.0


def data_item_assigned(layer: Any) -> None:
    layer.weight.data[0] = 1.0


LOST: dict[str, Callable[[Any], object]] = {
    "add_": lambda layer: layer.weight.add_(1.0),
    "copy_": lambda layer: layer.weight.copy_(torch.zeros_like(layer.weight)),
    "data.copy_": lambda layer: layer.weight.data.copy_(torch.zeros_like(layer.weight)),
    "data.normal_": lambda layer: layer.weight.data.normal_(),
    "data +=": data_iadd,
    "data =": data_assigned,
    "[0] =": item_assigned,
    "data[0] =": data_item_assigned,
    "init.normal_": lambda layer: nn.init.normal_(layer.weight),
    "init.zeros_": lambda layer: nn.init.zeros_(layer.weight),
    "init.kaiming_uniform_": lambda layer: nn.init.kaiming_uniform_(layer.weight),
    "init.xavier_normal_": lambda layer: nn.init.xavier_normal_(layer.weight),
    "init.orthogonal_": lambda layer: nn.init.orthogonal_(layer.weight),
    "init.trunc_normal_": lambda layer: nn.init.trunc_normal_(layer.weight),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("make", [layer_of, kernel])
@pytest.mark.parametrize("gradients", [False, True])
def test_writing_into_a_perturbed_weight_is_refused(name: str, make: Any, gradients: bool) -> None:
    layer = make()
    before = layer.weight.detach().clone()
    with torch.set_grad_enabled(gradients), pytest.raises(p4.ArgumentError, match="`weight` must be left as it is"):
        LOST[name](layer)
    assert torch.equal(layer.weight, before)
    p4.finalize(layer)
    with torch.no_grad():
        LOST[name](layer)
    assert not torch.equal(layer.weight, before)


def test_a_weight_can_be_replaced() -> None:
    layer = kernel()
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight = before + 1
        layer.weight += 1
        layer.weight *= 2
    torch.testing.assert_close(layer.weight, (before + 2) * 2, rtol=ROUNDING, atol=ROUNDING)


def test_a_perturbed_weight_is_a_tensor_otherwise() -> None:
    layer = kernel()
    weight: Tensor = layer.weight
    for result in (weight + 0, weight.detach(), weight.clone(), weight.flatten(), weight[0], weight.double()):
        assert type(result) is Tensor
    assert type(layer(torch.randn(1, 4, 5, 5))) is Tensor
    weight.detach().add_(1.0)  # a tensor of one's own
    torch.testing.assert_close(weight, nn.Parameter(weight.detach()))
    torch.testing.assert_close(nn.Parameter(weight.detach()), weight)
    assert repr(weight) == repr(weight.as_subclass(Tensor)) and "EffectiveWeight" not in repr(weight)
    assert weight.tolist() == weight.detach().tolist() and weight.numpy(force=True).shape == (4, 4, 3, 3)
    weight.square().sum().backward()
    assert all(value.grad is not None for site in p4.sites(layer) for value in site.trainable().values())
    with torch.no_grad():
        twin, file = copy.deepcopy(layer.weight), io.BytesIO()
        torch.save(layer.weight, file)
    file.seek(0)
    assert type(twin) is Tensor and torch.equal(torch.load(file, weights_only=True), twin)
