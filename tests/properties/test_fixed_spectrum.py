"""Similarity classes: eigenvalues through training, what is admitted, precision. General checks are in the table."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

import p4torch as p4

#: Float64 products of a few matrices of norm about 1; and of one rounding of a float32 matrix of size 16.
EXACT, SINGLE = 1e-11, 1e-5


def sorted_eigenvalues(matrix: Tensor) -> Tensor:
    values = torch.linalg.eigvals(matrix.detach().double())
    order = sorted(range(len(values)), key=lambda i: (round(float(values[i].real), 4), float(values[i].imag)))
    return values[order]


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 2**16))
def test_the_move_is_a_similarity(n: int, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    base, rank = torch.randn(n, n, dtype=torch.float64), min(rank, n)
    perturbation = p4.FixedSpectrum(base, rank=rank, scale=1.0)
    with torch.no_grad():
        perturbation.u.copy_(torch.randn(n, rank))
    perturbation.after_step()
    u, v = perturbation.u.detach(), perturbation.v.detach()
    t = torch.eye(n, dtype=torch.float64) + u @ v.mT
    expected = t @ base @ torch.linalg.inv(t)
    scale = float(torch.linalg.cond(t))
    torch.testing.assert_close(perturbation(base).detach(), expected, rtol=0, atol=EXACT * scale)


def test_eigenvalues_stay_while_eigenvectors_train() -> None:
    layer = nn.Linear(16, 16, bias=False)
    base = layer.weight.detach().clone()
    p4.perturb(layer, "weight", p4.FixedSpectrum, rank=2, scale=1.0)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-3)
    p4.MergeScheduler(layer, optimizer, every=10, directions="gradient").attach()
    target = torch.linalg.qr(torch.randn(16, 16))[0]
    target = target @ base @ target.mT
    start = float((layer.weight - target).square().sum())
    for _ in range(500):
        x = torch.randn(64, 16)
        loss = (layer(x) - x @ target.mT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (layer.weight - target).square().sum() < 0.7 * start
    p4.finalize(layer)
    difference = sorted_eigenvalues(layer.weight) - sorted_eigenvalues(base)
    assert difference.abs().max() <= 1e2 * SINGLE  # eigenvalues of a matrix that is not normal are sensitive


def test_the_determinant_is_a_constant() -> None:
    base = torch.randn(2, 5, 5, dtype=torch.float64)
    perturbation = p4.FixedSpectrum(base, rank=1, scale=1.0)
    with torch.no_grad():
        perturbation.u.copy_(0.1 * torch.randn_like(perturbation.u))
    sign, logabsdet = torch.linalg.slogdet(perturbation(base).detach())
    torch.testing.assert_close(perturbation.logabsdet(base), logabsdet, rtol=0, atol=EXACT * 100)
    assert torch.equal(perturbation.sign(base), sign)


def test_assignment_begins_another_class() -> None:
    layer = nn.Linear(4, 4, bias=False).double()
    p4.perturb(layer, "weight", p4.FixedSpectrum, rank=1)
    other = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])).double()
    layer.weight = other
    (site,) = p4.sites(layer)
    assert torch.equal(layer.weight, other) and site.perturbation.defect(site.base) == 0
    with torch.no_grad():
        site.perturbation.u.copy_(0.1 * torch.randn_like(site.perturbation.u))
    assert site.merge().ok
    values = torch.linalg.eigvals(site.base).real.sort().values
    torch.testing.assert_close(values, torch.arange(1.0, 5.0).double(), rtol=0, atol=EXACT * 100)


def test_a_singular_move_is_refused() -> None:
    base = torch.randn(3, 3, dtype=torch.float64)
    perturbation = p4.FixedSpectrum(base, rank=1, scale=1.0)
    with torch.no_grad():  # VᵀU = -1
        perturbation.u.copy_(-perturbation.v / perturbation.v.square().sum())
    kept = base.clone()
    report = perturbation.merge(base)
    assert not report.ok and torch.equal(base, kept)


def test_a_move_that_loses_digits_is_refused() -> None:
    base = torch.randn(3, 3, dtype=torch.float64)
    perturbation = p4.FixedSpectrum(base, rank=1, scale=1.0)
    with torch.no_grad():  # VᵀU = 0, and T is far from the identity all the same
        perturbation.v.copy_(torch.tensor([[1.0], [0.0], [0.0]]))
        perturbation.u.copy_(torch.tensor([[0.0], [1e6], [0.0]]))
    report = perturbation.merge(base)
    assert "nearly singular" in (report.reason or "")


def test_zeros_are_their_own_class() -> None:
    base = torch.zeros(3, 3)
    perturbation = p4.FixedSpectrum(base)
    assert perturbation.defect(base) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perturbation.right_inverse(base)


def test_precision_survives_changes_of_dtype() -> None:
    layer = nn.Linear(6, 6, bias=False)
    p4.perturb(layer, "weight", p4.FixedSpectrum)
    layer = copy.deepcopy(layer).half().float()
    (site,) = p4.sites(layer)
    assert site.perturbation.exact.value.dtype == torch.float64
    site.correct()  # the base comes back from its exact copy
    assert site.perturbation.defect(site.base) <= SINGLE / 10


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (torch.zeros(4, 2), "square"),
        (torch.eye(2, dtype=torch.complex64), "`base` must be real"),
        (torch.full((2, 2), torch.inf), "`base` must be finite"),
    ],
)
def test_bad_bases(base: Tensor, message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.FixedSpectrum(base)
