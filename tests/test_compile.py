"""Compiled models: merges go on underneath without a recompilation; finalized ones can be quantized."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import p4torch as p4

WIDTH, STEPS, EVERY = 16, 200, 20
#: Compiled and plain sums of float32 in another order, over the steps of a training.
ROUNDING = 1e-3
#: Half a step of 8-bit weights, relative to the largest entry, adds up like a random walk; twice that.
QUANTIZED = 2 / 127

PROPERTIES: dict[str, Any] = {
    "additive": partial(p4.Invertible, rank=2),
    "rotation": partial(p4.Orthogonal, rank=2),
    "blocks": partial(p4.Orthogonal, block=4),
    "low rank": partial(p4.LowRankUpdate, rank=2),
}


def model_of(property: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    nn.init.orthogonal_(model[0].weight)
    p4.perturb(model, "0.weight", property)
    return model


def train(model: nn.Module, forward: Any) -> tuple[p4.MergeScheduler, Tensor]:
    optimizer = torch.optim.SGD(p4.parameter_groups(model), lr=1e-3, momentum=0.9)
    schedule = p4.MergeScheduler(model, optimizer, every=EVERY)
    schedule.attach()
    for step in range(STEPS):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = (forward(x) - x.flip(-1)).square().mean()
            loss.backward()
            optimizer.step()
    return schedule, loss.detach()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_a_compiled_model_trains_through_merges_without_recompiling(name: str) -> None:
    torch.compiler.reset()
    model, plain = model_of(PROPERTIES[name]), model_of(PROPERTIES[name])
    schedule, loss = train(model, torch.compile(model, fullgraph=True))
    assert (schedule.merged, schedule.skipped) == (STEPS // EVERY, 0)
    torch.testing.assert_close(loss, train(plain, plain)[1], rtol=ROUNDING, atol=0)


@pytest.mark.slow
def test_a_finalized_model_is_quantized_by_torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = model_of(PROPERTIES["rotation"])
    train(model, model)
    x = torch.randn(64, WIDTH)
    expected = model(x).detach()
    finalized = p4.finalize(copy.deepcopy(model))
    quantization.quantize_(finalized, quantization.Int8WeightOnlyConfig())
    assert type(finalized[0].weight.data) is not Tensor
    torch.testing.assert_close(finalized(x).detach(), expected, rtol=0, atol=QUANTIZED * float(expected.abs().max()))
