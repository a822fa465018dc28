"""Unitary matrices: what is admitted, stacks, large ones, drift. The general checks are in the table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

import p4torch as p4
from p4torch import linalg
from p4torch.properties._math.drift import DRIFT

#: Products of a few complex128 matrices of norm 1.
ROUNDING = 1e-13


def complex_normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def holder(weight: Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return module


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**16))
def test_orthonormal_whatever_b_is(rows: int, columns: int, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    base = linalg.orthonormalized(complex_normal(rows, columns))
    perturbation = p4.Unitary(base, rank=min(rank, max(rows, columns)))
    with torch.no_grad():
        perturbation.u.copy_(3 * complex_normal(*perturbation.u.shape))
    assert perturbation.defect(perturbation(base)) <= ROUNDING * 100


def test_the_transform_is_the_dense_one() -> None:
    base = linalg.orthonormalized(complex_normal(5, 5))
    perturbation = p4.Unitary(base, rank=2, scale=1.0)
    with torch.no_grad():
        perturbation.u.copy_(complex_normal(5, 2))
    u, v, eye = perturbation.u.detach(), perturbation.v.detach(), torch.eye(5, dtype=torch.complex128)
    skew = u @ v.mH - v @ u.mH
    expected = torch.linalg.solve(eye - skew / 2, eye + skew / 2) @ base
    torch.testing.assert_close(perturbation(base).detach(), expected, rtol=0, atol=ROUNDING * 10)
    product = perturbation.inverse(base) @ perturbation(base)
    torch.testing.assert_close(product.detach(), eye, rtol=0, atol=ROUNDING * 10)
    assert perturbation.logabsdet(base) == 0 and not perturbation.logabsdet(base).is_complex()
    torch.testing.assert_close(perturbation.sign(base), torch.linalg.det(perturbation(base)), rtol=0, atol=1e-12)


def test_a_base_outside_is_projected_with_its_distance() -> None:
    tensor = complex_normal(6, 3)
    module = holder(tensor)
    with pytest.warns(p4.ProjectionWarning, match=r"set of Unitary \(defect \d"):
        p4.perturb(module, "weight", p4.Unitary)
    (site,) = p4.sites(module)
    left, _, right = torch.linalg.svd(tensor, full_matrices=False)
    torch.testing.assert_close(site.base.detach(), left @ right, rtol=0, atol=ROUNDING * 10)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (torch.eye(3), r"`base` must be complex \(Orthogonal is the real one\), got torch.float32"),
        (torch.ones(3, dtype=torch.complex64), "at least 2 dimensions"),
        (torch.full((2, 2), complex("nan"), dtype=torch.complex64), "`base` must be finite"),
    ],
)
def test_bad_bases(base: Tensor, message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.Unitary(base)


def test_gradient_directions_are_refused_by_name() -> None:
    with pytest.raises(p4.ArgumentError, match="`directions` must be random, for complex matrices, got 'gradient'"):
        p4.Unitary(torch.eye(2, dtype=torch.complex64), directions="gradient")


def test_inverses_of_rectangles_are_refused() -> None:
    base = linalg.orthonormalized(complex_normal(4, 2))
    perturbation = p4.Unitary(base)
    for call in (perturbation.inverse, perturbation.logabsdet, lambda base: perturbation.solve(base, base.mT)):
        with pytest.raises(p4.ArgumentError, match="square"):
            call(base)


def test_training_through_a_schedule_in_single_precision() -> None:
    target = linalg.orthonormalized(complex_normal(8, 8)).to(torch.complex64)
    module = holder(torch.eye(8, dtype=torch.complex64))
    p4.perturb(module, "weight", p4.Unitary, rank=4)
    optimizer = torch.optim.Adam(p4.parameter_groups(module), lr=1e-2)
    scheduler = p4.MergeScheduler(module, optimizer, every=5, optimizer_state="transport", directions="gradient")
    losses = []
    for _ in range(400):
        loss = (module.weight - target).abs().square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-2 * losses[0]
    (site,) = p4.sites(module)
    assert site.perturbation.defect(site.base) <= DRIFT * torch.finfo(torch.float32).eps


def test_tall_ones_form_nothing_square() -> None:
    base = torch.linalg.qr(torch.randn(20_000, 3, dtype=torch.complex64))[0]
    perturbation = p4.Unitary(base, rank=2)
    with torch.no_grad():
        perturbation.u.add_(0.01 * torch.randn_like(perturbation.u))
    assert perturbation.merge(base).ok
    assert perturbation.defect(base) <= DRIFT * torch.finfo(torch.float32).eps
