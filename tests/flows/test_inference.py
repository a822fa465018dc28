"""Flows with constant inverses and determinants: the same maps, exported too."""

from __future__ import annotations

import pytest
import torch
from tests.flows.bijections import BIJECTIONS, randomized
from torch import Tensor, nn

import p4torch as p4
from p4torch.flows import (
    AffineCoupling,
    Bijection,
    Chain,
    Flow,
    InvertibleLinear,
    SplineCoupling,
    StandardNormal,
    Swap,
    for_inference,
)

#: float32, through inverses that are tracked on the one side and computed on the other.
ROUNDING = 1e-3
#: The same operations in another program.
PROGRAM = 1e-4


class Backwards(nn.Module):
    """What draws samples."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse(z)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_the_same_flow(name: str) -> None:
    make, features = BIJECTIONS[name]
    dtype = torch.complex128 if "complex" in name else None
    flow = Flow(randomized(make(), 0.2), StandardNormal(features, dtype=dtype))
    fixed, x = for_inference(flow), torch.randn(6, features, dtype=dtype)
    torch.testing.assert_close(fixed.log_prob(x), flow.log_prob(x).detach(), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(
        fixed.bijection.inverse(x)[0], flow.bijection.inverse(x)[0].detach(), rtol=0, atol=ROUNDING
    )
    assert not any(value.requires_grad for value in fixed.parameters()) and not fixed.training
    again = for_inference(flow)
    again.load_state_dict(fixed.state_dict())
    assert torch.equal(again.log_prob(x), fixed.log_prob(x))


def test_weights_are_not_computed_with_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = for_inference(Flow(Chain([InvertibleLinear(4), InvertibleLinear(4, rank=1)]), StandardNormal(4)))
    monkeypatch.setattr(torch.linalg, "slogdet", None)
    monkeypatch.setattr(torch.linalg, "inv", None)
    fixed.sample_with_log_prob(3)
    fixed.log_prob(torch.randn(3, 4))


def test_arguments() -> None:
    with pytest.raises(p4.ArgumentError, match=r"`flow` must be an nn.Module, got int"):
        for_inference(3)  # type: ignore[type-var]


@pytest.mark.slow
@pytest.mark.parametrize("backwards", [False, True])
def test_onnx(backwards: bool) -> None:
    """In onnxruntime, for batches of any size; with all kinds of layers at once."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layers = [AffineCoupling(4, hidden=(8,)), Swap(4), InvertibleLinear(4), InvertibleLinear(4, rank=1)]
    layers += [SplineCoupling(4, moved=(0, 2), circular=(1, 2), hidden=(8,)), BIJECTIONS["partial, all features"][0]()]
    flow = for_inference(Flow(randomized(Chain(layers), 0.2), StandardNormal(4)))
    model = Backwards(flow.bijection) if backwards else flow
    batch = torch.export.Dim("batch", min=1, max=100_000)
    program = torch.onnx.export(model, (torch.randn(5, 4),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())  # type: ignore[union-attr]
    for count in (1, 9):
        x = torch.randn(count, 4)
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = model(x) if backwards else (model(x),)
        for value, exact in zip(got, expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(value), exact, rtol=0, atol=PROGRAM)
