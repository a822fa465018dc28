"""Stochastic and doubly stochastic matrices: softmax, Sinkhorn's sweeps and their derivatives, and admission."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from tests.layers import trained_in
from torch import Tensor, nn

import p4torch as p4
from p4torch import linalg
from p4torch.properties._math.simplex import doubly_normalized, sinkhorn, sinkhorn_reference

#: Sums of a few numbers in float64.
EXACT = 1e-12
#: Sums of a few numbers in float32.
ROUNDING = 1e-6
#: Enough sweeps for a positive matrix of moderate spread to come to the limit in float64.
SWEEPS = 60


def positive(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (0.7 * torch.randn(shape, dtype=torch.float64)).exp().to(dtype)


def stochastic(*shape: int, doubly: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    tensor = positive(*shape)
    return (sinkhorn_reference(tensor, SWEEPS) if doubly else tensor / tensor.sum(-1, keepdim=True)).to(dtype)


def moved(base: Tensor, size: float = 0.5, **options: Any) -> p4.Stochastic:
    perturbation = p4.Stochastic(base, **options)
    with torch.no_grad():
        perturbation.u.copy_(size * torch.randn(perturbation.u.shape))
    return perturbation


def worst(matrix: Tensor, doubly: bool = False) -> float:
    """The largest deviation of a row (or column) sum from 1; entries must not be negative."""
    assert (matrix >= 0).all()
    exact = matrix.detach().double()
    return float(torch.stack([(exact.sum(dim) - 1).abs().max() for dim in ((-1, -2) if doubly else (-1,))]).max())


@given(n=st.integers(1, 6), m=st.integers(1, 6), k=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_rows_are_reweighted_and_normalised(n: int, m: int, k: int, seed: int) -> None:
    torch.manual_seed(seed)
    base = stochastic(2, n, m)
    base[0, 0, 1:] = 0
    base[0, 0, 0] = 1
    perturbation = moved(base, rank=min(k, m), scale=1.0)
    weights = base * (perturbation.u @ perturbation.v.mT).exp()
    torch.testing.assert_close(perturbation(base), weights / weights.sum(-1, keepdim=True), rtol=0, atol=EXACT)
    x = torch.randn(2, 3, m, dtype=torch.float64)
    torch.testing.assert_close(perturbation.matmul(base, x), x @ perturbation(base).mT, rtol=0, atol=EXACT)


@pytest.mark.parametrize("doubly", [False, True])
def test_large_exponents_neither_overflow_nor_vanish(doubly: bool) -> None:
    base = stochastic(4, 4, doubly=doubly, dtype=torch.float32)
    for size in (30.0, 300.0):
        perturbation = moved(base, size, doubly=doubly)
        weight = perturbation(base)
        assert weight.isfinite().all() and worst(weight) <= ROUNDING
        weight.square().sum().backward()
        assert perturbation.u.grad is not None and perturbation.u.grad.isfinite().all()


@pytest.mark.parametrize("doubly", [False, True])
def test_positive_entries_stay_positive(doubly: bool) -> None:
    base = stochastic(5, 5, doubly=doubly, dtype=torch.float32)
    perturbation = p4.Stochastic(base, doubly, sweeps=200)
    for _ in range(20):
        with torch.no_grad():
            perturbation.u.copy_(3 * torch.randn(perturbation.u.shape))
        perturbation.merge(base)
    assert (base > 0).all()
    assert worst(base, doubly) <= ROUNDING


# --- Sinkhorn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (2,)])
def test_sweeps_and_their_derivatives(batch: tuple[int, ...]) -> None:
    weights = positive(*batch, 5, 5).requires_grad_()
    scaled = sinkhorn(weights, SWEEPS)
    assert worst(scaled, True) <= EXACT
    torch.testing.assert_close(scaled, sinkhorn_reference(weights, SWEEPS), rtol=0, atol=EXACT)
    noise = torch.randn(scaled.shape, dtype=torch.float64)
    (fast,) = torch.autograd.grad((scaled * noise).sum(), weights)
    (tape,) = torch.autograd.grad((sinkhorn_reference(weights, SWEEPS) * noise).sum(), weights)
    torch.testing.assert_close(fast, tape, rtol=0, atol=EXACT)
    function = partial(sinkhorn, sweeps=SWEEPS)
    assert torch.autograd.gradcheck(function, (weights,))
    assert torch.autograd.gradgradcheck(function, (weights,), fast_mode=True)


def test_a_merge_of_a_doubly_stochastic_matrix_leaves_the_weight() -> None:
    base = stochastic(3, 20, 20, doubly=True, dtype=torch.float32)
    perturbation = moved(base, 0.2, doubly=True)
    weight = perturbation(base).detach()
    assert worst(weight, True) <= ROUNDING
    assert perturbation.merge(base).ok
    torch.testing.assert_close(base, weight, rtol=0, atol=ROUNDING)
    assert worst(base, True) <= ROUNDING


@pytest.mark.parametrize("rows", [[[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
def test_without_total_support_what_is_left_is_spread(rows: list[list[float]]) -> None:
    """Sinkhorn's sweeps come closer as one over their number, or not at all."""
    tensor = torch.tensor(rows, dtype=torch.float64)
    limit = doubly_normalized(tensor, EXACT)
    assert worst(limit, True) <= EXACT
    swept = sinkhorn_reference(tensor, 100)
    left = worst(swept, True)
    assert left > ROUNDING
    assert float((limit - swept).abs().sum()) <= 4 * len(tensor) * left


# --- admission ----------------------------------------------------------------------------------------------------


def test_a_plain_layer_is_projected_and_given_back() -> None:
    layer = nn.Linear(7, 5)
    clipped = layer.weight.detach().clamp_min(0)
    with pytest.warns(p4.ProjectionWarning) as caught:
        p4.perturb(layer, "weight", p4.Stochastic)
    messages = [str(warning.message) for warning in caught]
    assert any("Stochastic (defect" in message for message in messages)
    assert any("stay 0 without a `floor`" in message for message in messages)
    torch.testing.assert_close(layer.weight.detach(), clipped / clipped.sum(-1, keepdim=True), rtol=0, atol=ROUNDING)
    assert type(p4.finalize(layer)) is nn.Linear


@pytest.mark.parametrize("doubly", [False, True])
def test_an_element_is_kept(doubly: bool) -> None:
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight.copy_(stochastic(6, 6, doubly=doubly))
    weight = layer.weight.detach().clone()
    p4.perturb(layer, "weight", p4.Stochastic, doubly=doubly)
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=ROUNDING)


def test_a_floor_lets_a_permutation_train() -> None:
    base = torch.eye(4, dtype=torch.float64)
    for doubly in (False, True):
        stuck, free = p4.Stochastic(base, doubly), p4.Stochastic(base, doubly, floor=0.1)
        assert torch.equal(stuck.right_inverse(base), base)
        admitted = free.right_inverse(base)
        torch.testing.assert_close(float(admitted.min()), 0.1 / 4)
        assert worst(admitted, doubly) <= EXACT
        torch.testing.assert_close(free.right_inverse(admitted), admitted, rtol=0, atol=EXACT)
        (free(admitted) * torch.randn(4, 4)).sum().backward()
        (stuck(base) * torch.randn(4, 4)).sum().backward()
        assert free.u.grad is not None and free.u.grad.abs().max() > ROUNDING
        assert stuck.u.grad is not None and stuck.u.grad.abs().max() <= EXACT


def test_the_doubly_stochastic_limit() -> None:
    tensor = positive(6, 6)
    perturbation = p4.Stochastic(tensor, doubly=True)
    with pytest.warns(p4.ProjectionWarning):
        admitted = perturbation.right_inverse(tensor)
    torch.testing.assert_close(admitted, doubly_normalized(tensor, EXACT), rtol=0, atol=EXACT)
    logs = (admitted / tensor).log()  # D K D': rows and columns of log(W / K) differ by constants
    torch.testing.assert_close(logs - logs[:1], (logs - logs[:1])[:, :1].expand(6, 6), rtol=0, atol=10 * EXACT)


@pytest.mark.parametrize(
    ("rows", "doubly", "message"),
    [
        ([[1.0, 1.0], [-1.0, -2.0]], False, "`tensor` must be of positive mass in each row, .* got 1 of 2 rows"),
        ([[1.0, 1.0], [0.5, -0.5]], False, "got 1 of 2 rows with none, or with negative entries that cancel it: sum 0"),
        ([[0.0, 0.0], [0.5, 0.5]], False, "`tensor` must be of positive mass in each row"),
        ([[1.0, 0.0], [1.0, 0.0]], True, "`tensor` must be of positive mass in each column, .* got 1 of 2 columns"),
    ],
)
def test_beyond_repair(rows: list[list[float]], doubly: bool, message: str) -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    with pytest.raises(p4.ArgumentError, match=message):
        p4.perturb(layer, "weight", p4.Stochastic, doubly=doubly)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (torch.ones(2, 3), {"doubly": True}, r"`base` must be square, .* for doubly stochastic .*, got \(2, 3\)"),
        (torch.eye(2, dtype=torch.complex64), {}, "`base` must be real, got torch.complex64"),
        (torch.ones(3), {}, "`base` must be of at least 2 dimensions"),
        (torch.eye(2), {"sweeps": 0}, "`sweeps` must be an integer >= 1, got 0"),
        (torch.eye(2), {"floor": -1.0}, "`floor` must be a number >= 0, got -1.0"),
        (torch.eye(2), {"floor": 1.0}, "`floor` must be less than 1, got 1.0"),
        (torch.eye(2), {"rank": 0}, "`rank` must be an integer >= 1, got 0"),
    ],
)
def test_bad_input(base: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.Stochastic(base, **options)


def test_models_of_half_precision() -> None:
    layer = trained_in(torch.bfloat16, p4.Stochastic, floor=0.1)
    assert worst(layer.weight) <= 8 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("method", ["forward", "matmul"])
def test_gradient_directions(method: str) -> None:
    base = stochastic(5, 7)
    perturbation = p4.Stochastic(base, rank=2, directions="gradient")
    perturbation.start_sketch(torch.Generator().manual_seed(3))
    sketch: Any = perturbation.sketch
    rows = torch.randn(40, 7, dtype=torch.float64)
    arguments = (rows,) if method == "matmul" else ()
    got = getattr(perturbation, method)(base, *arguments)
    target = torch.randn(got.shape, dtype=torch.float64)
    (got * target).sum().backward()
    logs = base.log().requires_grad_()
    dense = logs.softmax(-1)
    ((rows @ dense.mT if arguments else dense) * target).sum().backward()
    assert logs.grad is not None
    expected = linalg.orthonormal(logs.grad.mT @ (logs.grad @ sketch.probe))
    torch.testing.assert_close(sketch.directions(), expected, rtol=0, atol=EXACT)
