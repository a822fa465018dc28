"""What bijections take: tensors of the dtype of their parameters, the same for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.flows.bijections import BIJECTIONS

from p4torch.errors import ArgumentError
from p4torch.flows import AffineCoupling, Chain, Flow, InvertibleLinear, InvertibleMLP, SplineCoupling, StandardNormal

REAL = [name for name in BIJECTIONS if "complex" not in name]
OTHER = {torch.float32: torch.float64, torch.float64: torch.float32}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", REAL)
def test_points_of_another_dtype_than_the_parameters(name: str, gradients: bool) -> None:
    factory, features = BIJECTIONS[name]
    for dtype, other in OTHER.items():
        bijection = factory().to(dtype)
        x, wrong = (torch.randn(3, features, dtype=kind) for kind in (dtype, other))
        with torch.set_grad_enabled(gradients):
            for direction in (bijection, bijection.inverse):
                assert {value.dtype for value in direction(x)} == {dtype}
                if not list(bijection.parameters()):
                    assert {value.dtype for value in direction(wrong)} == {other}
                    continue
                with pytest.raises(
                    ArgumentError, match=f"`[xz]` must be of the parameters' dtype, {dtype}, got {other}"
                ):
                    direction(wrong)


@pytest.mark.parametrize("name", [name for name in BIJECTIONS if "complex" in name])
def test_complex_points_of_another_dtype(name: str) -> None:
    factory, features = BIJECTIONS[name]
    x = torch.randn(3, features, dtype=torch.complex64)
    with pytest.raises(ArgumentError, match=r"`x` must be of the parameters' dtype, torch.complex128"):
        factory()(x)


@pytest.mark.parametrize("points", [np.zeros((3, 4)), [[0.0] * 4], np.float64(1.0), 1.0])
@pytest.mark.parametrize("name", ["coupling", "spline coupling", "linear", "chain", "swap", "partial, all features"])
def test_what_is_no_tensor(name: str, points: Any) -> None:
    factory, features = BIJECTIONS[name]
    bijection = factory()
    flow = Flow(bijection, StandardNormal(features))
    for function, argument in ((bijection, "x"), (bijection.inverse, "z"), (flow.log_prob, "x"), (flow, "x")):
        with pytest.raises(ArgumentError, match=rf"^`{argument}` must be a tensor .*got {type(points).__module__}"):
            function(points)


@pytest.mark.parametrize("name", REAL)
def test_integers(name: str) -> None:
    factory, features = BIJECTIONS[name]
    with pytest.raises(ArgumentError, match=r"`[xz]` must be of a floating-point dtype, got torch.int64"):
        factory()(torch.ones(3, features, dtype=torch.int64))


def test_under_autocast_layers_take_what_the_ones_before_return() -> None:
    layers = [InvertibleLinear(4), AffineCoupling(4), InvertibleMLP(4, depth=2), SplineCoupling(4, (0, 1))]
    flow = Flow(Chain(layers), StandardNormal(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert flow.log_prob(torch.randn(3, 4)).isfinite().all()
