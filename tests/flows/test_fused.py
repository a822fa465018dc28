"""The fused chain against its reference."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from p4torch.flows import Flow, InvertibleMLP, StandardNormal
from p4torch.flows._fused.chain import chain_reference, fused_chain

#: float64 rounding through up to twenty layers of slopes up to 2.
TOLERANCE = 1e-11


def _inputs(depth: int, n: int, points: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.eye(n) + 0.3 * torch.randn(depth, n, n, generator=generator)
    bias = 0.3 * torch.randn(depth, n, generator=generator)
    x = torch.randn(points, n, generator=generator)
    return tuple(value.double().requires_grad_() for value in (x, weight, bias))  # type: ignore[return-value]


@settings(deadline=None, max_examples=30)
@given(depth=st.integers(1, 20), n=st.integers(1, 4), points=st.integers(1, 6), seed=st.integers(0, 1000))
def test_values_and_gradients(depth: int, n: int, points: int, seed: int) -> None:
    inputs = _inputs(depth, n, points, seed)
    fused, reference = fused_chain(*inputs), chain_reference(*inputs)
    directions = [torch.randn_like(value) for value in reference]
    for left, right in zip(fused, reference, strict=True):
        torch.testing.assert_close(left, right, rtol=TOLERANCE, atol=TOLERANCE)
    for left, right in zip(
        torch.autograd.grad(fused, inputs, directions), torch.autograd.grad(reference, inputs, directions), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_first_and_second_derivatives(depth: int) -> None:
    inputs = _inputs(depth, 2, 3, seed=1)
    assert torch.autograd.gradcheck(fused_chain, inputs)
    assert torch.autograd.gradgradcheck(fused_chain, inputs)


def test_backward_twice_with_a_retained_graph() -> None:
    inputs = _inputs(4, 2, 3, seed=2)
    z, total = fused_chain(*inputs)
    loss = z.sum() + total.sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for left, right in zip(first, torch.autograd.grad(loss, inputs), strict=True):
        assert torch.equal(left, right)


def test_graphs_alive_at_once_share_nothing() -> None:
    first, second = _inputs(5, 2, 3, seed=4), _inputs(5, 2, 3, seed=5)
    expected = [torch.autograd.grad(fused_chain(*inputs)[0].sum(), inputs) for inputs in (first, second)]
    outputs = [fused_chain(*inputs)[0].sum() for inputs in (first, second)]
    for inputs, output, gradients in zip((first, second), outputs, expected, strict=True):
        for left, right in zip(torch.autograd.grad(output, inputs), gradients, strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("create_graph", [False, True])
def test_points_without_a_gradient(create_graph: bool) -> None:
    x, weight, bias = _inputs(5, 2, 3, seed=6)
    expected = torch.autograd.grad(sum(value.sum() for value in chain_reference(x, weight, bias)), (weight, bias))
    total = sum(value.sum() for value in fused_chain(x.detach(), weight, bias))
    got = torch.autograd.grad(total, (weight, bias), create_graph=create_graph)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=TOLERANCE, atol=TOLERANCE)


def test_any_leading_shape() -> None:
    x, weight, bias = _inputs(3, 2, 6, seed=3)
    z, total = fused_chain(x.reshape(2, 3, 2), weight, bias)
    assert torch.equal(z.reshape(6, 2), fused_chain(x, weight, bias)[0])
    assert total.shape == (2, 3)
    assert fused_chain(x[0], weight, bias)[1].shape == ()


class _Count(TorchDispatchMode):
    """Counts the operations that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not func.is_view
        return func(*args, **(kwargs or {}))


def test_a_step_of_a_deep_flow_takes_four_operations_a_layer() -> None:
    """Time here is the number of calls; the original implementation needs some hundred a layer."""

    def operations(depth: int) -> int:
        flow = Flow(InvertibleMLP(2, depth), StandardNormal(2))
        with _Count() as count:
            (-flow.log_prob(torch.randn(16, 2)).mean()).backward()
        return count.operations

    assert operations(50) - operations(20) == 4 * 30
    assert operations(20) < 4 * 20 + 120
