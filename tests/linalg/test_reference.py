"""Derivatives of every hand-written function, where its inputs are shared or depend on each other."""

from __future__ import annotations

import pytest
import torch
from tests.fused import FUSED, Function, Fused, K, N
from torch import Tensor

from p4torch import linalg
from p4torch.linalg import fused_linear

#: Two orders of the same sums, in float64, through up to five layers.
ORDER = 1e-10


@pytest.fixture(autouse=True)
def no_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small inputs take the hand-written path, too."""
    monkeypatch.setattr(fused_linear, "CALLS", -float("inf"))
    monkeypatch.setattr(fused_linear, "dense_is_cheaper", lambda *_: False)
    monkeypatch.setattr(linalg, "SMALL", 0)


def outputs(function: Function, row: Fused, theta: Tensor) -> tuple[Tensor, ...]:
    found = function(*row.inputs(theta))
    return found if isinstance(found, tuple) else (found,)


def start() -> Tensor:
    return (0.4 * torch.randn(N, K, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("name", FUSED)
def test_first_derivatives(name: str) -> None:
    row, theta = FUSED[name], start()
    expected = outputs(row.readable, row, theta)
    directions = [torch.randn_like(value) for value in expected]
    (slope,) = torch.autograd.grad(expected, theta, directions)
    for create_graph in (False, True):
        got = outputs(row.fast, row, theta)
        torch.testing.assert_close(got, expected, rtol=ORDER, atol=ORDER)
        (found,) = torch.autograd.grad(got, theta, directions, create_graph=create_graph)
        torch.testing.assert_close(found, slope, rtol=ORDER, atol=ORDER)
    assert torch.autograd.gradcheck(lambda value: outputs(row.fast, row, value), theta)


@pytest.mark.parametrize("name", FUSED)
def test_second_derivatives(name: str) -> None:
    row, theta = FUSED[name], start()
    assert torch.autograd.gradgradcheck(lambda value: outputs(row.fast, row, value), theta)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("create_graph", [False, True])
def test_many_gradients_at_once(name: str, create_graph: bool) -> None:
    row, theta = FUSED[name], start()
    got = outputs(row.fast, row, theta)
    directions = [torch.randn(3, *value.shape, dtype=torch.float64) for value in got]

    def gradient(*chosen: Tensor, batched: bool = False) -> Tensor:
        return torch.autograd.grad(
            got, theta, chosen, retain_graph=True, create_graph=create_graph, is_grads_batched=batched
        )[0]

    expected = torch.stack([gradient(*one) for one in zip(*directions, strict=True)])
    for found in (gradient(*directions, batched=True), torch.func.vmap(gradient)(*directions)):
        torch.testing.assert_close(found, expected, rtol=ORDER, atol=ORDER)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorised_jacobians(name: str, strategy: str) -> None:
    row, theta = FUSED[name], start()
    jacobian = torch.autograd.functional.jacobian
    got = jacobian(lambda value: outputs(row.fast, row, value), theta, vectorize=True, strategy=strategy)
    expected = jacobian(lambda value: outputs(row.readable, row, value), theta)
    torch.testing.assert_close(got, expected, rtol=ORDER, atol=ORDER)
