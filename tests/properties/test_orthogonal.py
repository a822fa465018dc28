"""Orthogonal and Stiefel matrices: the Cayley transform, its derivatives, and drift over long runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from tests.layers import path_gradients, trained_in
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import p4torch as p4
from p4torch import linalg
from p4torch.properties._math.cayley import cayley, cayley_affine, cayley_affine_reference, cayley_reference

#: A few small solves in float64.
EXACT = 1e-11
#: What the defect may be after 10,000 steps in float32, relative to the norm of a column, which is 1.
KEPT = 1e-5
#: The effective weight through a merge in float32.
UNCHANGED = 1e-5

SHAPES = [(6, 6), (9, 4), (4, 9), (1, 1), (5, 1), (1, 5)]


def orthonormal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return linalg.orthonormalized(torch.randn(shape, dtype=torch.float64)).to(dtype)


def moved(base: Tensor, size: float = 0.3, **options: Any) -> p4.Orthogonal:
    perturbation = p4.Orthogonal(base, **options)
    with torch.no_grad():
        perturbation.u.copy_(size * torch.randn(perturbation.u.shape))
    return perturbation


def worst(matrix: Tensor) -> float:
    """max|AᵀA - I| over the short side, in float64."""
    return float(linalg.gram_error(linalg.short_rows(matrix.detach().double())).abs().max())


# --- the transform ------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 8), k=st.integers(1, 3), batch=st.sampled_from([(), (2,)]), seed=st.integers(0, 2**31))
def test_factors_are_the_dense_cayley_transform(n: int, k: int, batch: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    u, v = torch.randn(2, *batch, n, k, dtype=torch.float64)
    skew, eye = u @ v.mT - v @ u.mT, torch.eye(n, dtype=torch.float64)
    expected = torch.linalg.solve(eye - skew / 2, eye + skew / 2)
    for function in (cayley, cayley_reference):
        p, q = function(u, v)
        torch.testing.assert_close(eye + p @ q.mT, expected, rtol=0, atol=EXACT)


def test_both_paths_have_the_same_derivatives() -> None:
    torch.manual_seed(0)
    for k in (1, 3):
        u, v = torch.randn(2, 6, k, dtype=torch.float64).requires_grad_()
        base, x = orthonormal(6, 6).requires_grad_(), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(cayley, (u, v)) and torch.autograd.gradgradcheck(cayley, (u, v))
        arguments = (x, base, u, v, bias)
        assert torch.autograd.gradcheck(cayley_affine, arguments)
        assert torch.autograd.gradgradcheck(cayley_affine, arguments, fast_mode=True)
        torch.testing.assert_close(cayley_affine(*arguments), cayley_affine_reference(*arguments), rtol=0, atol=EXACT)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_result_is_orthonormal_for_every_b(shape: tuple[int, int], rank: int) -> None:
    base = orthonormal(*shape)
    for size in (1e-3, 1.0, 30.0):
        perturbation = moved(base, size, rank=min(rank, max(shape)))
        assert worst(perturbation(base)) <= EXACT
        x = torch.randn(2, 3, shape[1], dtype=torch.float64)
        expected = x @ perturbation(base).mT
        torch.testing.assert_close(perturbation.matmul(base, x), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("n", [5, 300])
def test_large_and_small_layers_take_their_own_path(n: int) -> None:
    """The dense path and the factored one, with gradients, against a dense layer."""
    base = orthonormal(n, n)
    for got, expected in path_gradients(moved(base, 0.1, rank=2), base, EXACT):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_the_sign_of_the_determinant_stays() -> None:
    base = orthonormal(6, 6)
    base[0] *= -torch.linalg.det(base).sign()  # a reflection
    perturbation = moved(base, 2.0, rank=2)
    assert perturbation.sign(base) == -1 and perturbation.logabsdet(base) == 0
    for _ in range(20):
        with torch.no_grad():
            perturbation.u.normal_()
        assert perturbation.merge(base).ok
    assert torch.linalg.det(base).sign() == perturbation.sign(base) == -1
    perturbation.right_inverse(orthonormal(6, 6) if torch.linalg.det(base) > 0 else -base[[1, 0, 2, 3, 4, 5]])
    assert perturbation.sign(base) in (-1, 1)


# --- admission ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_a_plain_layer_is_projected_to_its_polar_factor(shape: tuple[int, int]) -> None:
    layer = nn.Linear(shape[1], shape[0])
    left, _, right = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    with pytest.warns(p4.ProjectionWarning, match="Orthogonal"):
        p4.perturb(layer, "weight", p4.Orthogonal, rank=2)
    torch.testing.assert_close(layer.weight.detach(), (left @ right).float(), rtol=0, atol=UNCHANGED)
    assert type(p4.finalize(layer)) is nn.Linear


@pytest.mark.parametrize("matrix", [torch.zeros(4, 4), torch.ones(5, 3), torch.diag(torch.tensor([1.0, 1e-6, 1e6]))])
def test_matrices_without_a_unique_polar_factor(matrix: Tensor) -> None:
    assert worst(linalg.orthonormalized(matrix)) <= EXACT


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            torch.eye(3, dtype=torch.complex64),
            r"`base` must be real \(Unitary is the complex one\), got torch.complex64",
        ),
        (torch.ones(3), r"`base` must be of at least 2 dimensions, got \(3,\)"),
        (torch.full((2, 2), torch.nan), "`base` must be finite"),
    ],
)
def test_bad_bases(base: Tensor, message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.Orthogonal(base)


def test_rectangular_matrices_have_no_inverse() -> None:
    base = orthonormal(4, 3)
    perturbation = p4.Orthogonal(base)
    for call in (lambda: perturbation.solve(base, base), lambda: perturbation.inverse(base)):
        with pytest.raises(p4.ArgumentError, match=r"`base` must be square, .* for an inverse, got \(4, 3\)"):
            call()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes inside the block, in numbers."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.numel())
        return made


def test_a_very_tall_matrix_forms_nothing_larger_than_itself_and_trains() -> None:
    """30,000 x 30,000 would take 4 GB."""
    layer = nn.Linear(50, 30_000, bias=False)
    x = torch.randn(4, 50)
    target = x @ orthonormal(30_000, 50, dtype=torch.float32).mT
    losses = []
    with Largest() as largest:
        with pytest.warns(p4.ProjectionWarning):
            p4.perturb(layer, "weight", p4.Orthogonal, rank=2)
        optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-4)
        scheduler = p4.MergeScheduler(layer, optimizer, every=2)
        for _ in range(6):
            loss = (layer(x) - target).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(float(loss.detach()))
    assert largest.numbers == layer.weight.numel()
    assert scheduler.merged == 3 and losses[-1] < losses[0]
    assert worst(layer.weight) <= KEPT


# --- merges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (100, 100), (150, 20), (20, 150), (3, 8, 8)])
def test_a_merge_leaves_the_effective_weight(shape: tuple[int, ...]) -> None:
    base = orthonormal(*shape, dtype=torch.float32)
    perturbation = moved(base, 0.1, rank=2)
    weight = perturbation(base).detach()
    assert perturbation.merge(base).ok
    torch.testing.assert_close(base, weight, rtol=0, atol=UNCHANGED)


@pytest.mark.parametrize("size", [1e-4, 0.1, 10.0])
def test_a_damaged_base_is_repaired(size: float) -> None:
    base = orthonormal(3, 80, 70, dtype=torch.float32)
    kept = base.clone()
    perturbation = p4.Orthogonal(base)
    base[1] += size * torch.randn(80, 70)
    damaged = copy.deepcopy((perturbation, base))
    perturbation.correct(base)
    assert damaged[0].merge(damaged[1]).ok
    for repaired in (base, damaged[1]):
        assert worst(repaired) <= KEPT
        torch.testing.assert_close(repaired[[0, 2]], kept[[0, 2]], rtol=0, atol=UNCHANGED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision(dtype: torch.dtype) -> None:
    layer = trained_in(dtype, p4.Orthogonal, rank=2)
    assert worst(layer.weight) <= 8 * torch.finfo(dtype).eps
    layer.float()
    p4.merge(layer)
    assert worst(layer.weight) <= KEPT


def test_autocast_keeps_factors_exact() -> None:
    base = orthonormal(16, 16, dtype=torch.float32)
    perturbation = moved(base, 0.3, rank=2)
    expected = perturbation(base).detach()
    x = torch.randn(4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inverse, y = perturbation.inverse(base), perturbation.matmul(base, x)
    torch.testing.assert_close(inverse.detach().mT, expected, rtol=0, atol=UNCHANGED)
    bfloat16 = 0.1
    torch.testing.assert_close(y.detach().float(), x @ expected.mT, rtol=bfloat16, atol=bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 64), (100, 40), (40, 100)])
def test_ten_thousand_adam_steps_in_float32(shape: tuple[int, int]) -> None:
    layer = nn.Linear(shape[1], shape[0], bias=False)
    nn.init.orthogonal_(layer.weight)
    p4.perturb(layer, "weight", p4.Orthogonal, rank=2)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=20, correct_every=10**9)
    for step in range(10_000):
        x = torch.randn(8, shape[1])
        loss = (layer(x) * torch.randn(8, shape[0])).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            weight = layer.weight.detach()
        scheduler.step()
        if step % 20 == 19:
            torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=UNCHANGED)
    assert scheduler.merged == 500
    (site,) = p4.sites(layer)
    assert worst(site.base) <= KEPT


# --- gradient directions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["forward", "matmul", "solve", "inverse"])
@pytest.mark.parametrize("n", [6, 300])
def test_gradient_directions_see_the_skew_part_of_the_gradient(method: str, n: int) -> None:
    base = orthonormal(n, n)
    perturbation = p4.Orthogonal(base, rank=2, directions="gradient")
    perturbation.start_sketch(torch.Generator().manual_seed(3))
    sketch: Any = perturbation.sketch
    rows = torch.randn(400, n, dtype=torch.float64)
    arguments = (rows,) if method in ("matmul", "solve") else ()
    target = torch.randn(*(rows.shape if arguments else base.shape), dtype=torch.float64)
    (getattr(perturbation, method)(base, *arguments) * target).sum().backward()
    if method in ("forward", "inverse"):
        gradient = target if method == "forward" else target.mT
    else:
        gradient = target.mT @ rows if method == "matmul" else rows.mT @ target
    acting = gradient @ base.mT
    acting = acting - acting.mT
    expected = linalg.orthonormal(acting.mT @ (acting @ sketch.probe))
    torch.testing.assert_close(sketch.directions(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n", [6, 300])
def test_directions_that_do_not_train(n: int) -> None:
    base = orthonormal(n, n)
    perturbation = p4.Orthogonal(base, rank=2, train_directions=False)
    perturbation.matmul(base, torch.randn(400, n, dtype=torch.float64)).sum().backward()
    assert perturbation.u.grad is not None and perturbation.v.grad is None
