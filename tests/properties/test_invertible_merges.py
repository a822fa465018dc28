"""Merges of invertible matrices: bounds, residuals, penalty, long walks."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.properties.test_invertible import EXACT, assert_tracked, linear_of, moved, regular
from torch import Tensor, nn

import p4torch as p4
from p4torch.properties._math import checks
from p4torch.properties._math.checks import RESIDUAL_BOUND

#: The paper's bounds, one at a time.
PAPER_CHANGE = replace(p4.DeterminantBounds.paper(6), total=None)
PAPER_TOTAL = replace(p4.DeterminantBounds.paper(6), change=None)

# --- merges, bounds, residual -----------------------------------------------------------------------------------


def stretch(perturbation: p4.Invertible, base: Tensor, factor: float) -> None:
    """Choose u so that det R_B(A) / det A = factor."""
    with torch.no_grad():
        v = perturbation.v
        perturbation.u.copy_((factor - 1) * (base @ v) / v.square().sum())


@pytest.mark.parametrize("factor", [0.5, 3.0, -2.0])
def test_a_merge_updates_everything(factor: float) -> None:
    base = regular(6)
    perturbation = p4.Invertible(base, rank=1, scale=1.0)
    stretch(perturbation, base, factor)
    weight, logabsdet, sign = perturbation(base).detach(), perturbation.logabsdet(base), perturbation.sign(base)
    report = perturbation.merge(base)
    assert report.ok and report.reason is None and (report.index, report.merged, report.skipped) == (1, 1, 0)
    torch.testing.assert_close(base, weight)
    assert not perturbation.u.any()
    assert torch.equal(perturbation.sign(base), sign)
    torch.testing.assert_close(perturbation.logabsdet(base), logabsdet, rtol=0, atol=EXACT)
    torch.testing.assert_close(perturbation.inverse(base), torch.linalg.inv(weight), rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("bounds", "factor", "reason"),
    [
        (PAPER_CHANGE, math.exp(-6.1), "log|det R_B(A) / det A| is outside (-6.0, 15.5)"),
        (PAPER_CHANGE, math.exp(15.6), "log|det R_B(A) / det A| is outside (-6.0, 15.5)"),
        (
            PAPER_TOTAL,
            math.exp(-2.6),
            "log|det R_B(A)| relative to the admitted matrix is outside (-2.5, 15.5)",
        ),
        (p4.DeterminantBounds(change=(-1.0, 1.0)), math.exp(1.1), "log|det R_B(A) / det A| is outside (-1.0, 1.0)"),
        (
            p4.DeterminantBounds(total=(-1.0, 1.0)),
            -math.exp(1.1),
            "relative to the admitted matrix is outside (-1.0, 1.0)",
        ),
    ],
)
def test_bounds_skip_softly(bounds: p4.DeterminantBounds, factor: float, reason: str) -> None:
    base = regular(6)
    perturbation = p4.Invertible(base, rank=1, scale=1.0, bounds=bounds)
    stretch(perturbation, base, factor)
    before = copy.deepcopy(perturbation.state_dict())
    kept = base.clone()
    report = perturbation.merge(base)
    assert report.skipped == 1 and reason in (report.reason or "")
    assert torch.equal(base, kept)
    for name, value in perturbation.state_dict().items():
        assert name in ("skips", "attempts") or torch.equal(value, before[name]), name
    assert perturbation.merge(base, force=True).ok


def test_bounds_are_relative_to_the_admitted_matrix() -> None:
    base = 1e-3 * torch.eye(6, dtype=torch.float64)
    perturbation = p4.Invertible(base, rank=1, scale=1.0, bounds="paper")
    stretch(perturbation, base, 0.9)
    assert perturbation.merge(base).ok


def test_every_tenth_attempt_is_forced() -> None:
    base = regular(6)
    perturbation = p4.Invertible(base, rank=1, scale=1.0, bounds=PAPER_TOTAL)
    stretch(perturbation, base, math.exp(-4))
    outcome = [perturbation.merge(base).ok for _ in range(10)]
    assert outcome == [False] * 9 + [True]
    stretch(perturbation, base, math.exp(-4))
    assert not perturbation.merge(base).ok  # counting starts again


def test_force_every_zero_never_forces() -> None:
    base = regular(6)
    perturbation = p4.Invertible(base, rank=1, scale=1.0, bounds=replace(PAPER_TOTAL, force_every=0))
    stretch(perturbation, base, math.exp(-4))
    assert not any(perturbation.merge(base).ok for _ in range(25))


def test_no_bounds_no_skips() -> None:
    """The default: a determinant that is small, or far from where it was, is no reason."""
    base = regular(6)
    perturbation = p4.Invertible(base, rank=1, scale=1.0)
    stretch(perturbation, base, math.exp(-12))
    assert perturbation.merge(base).ok
    assert perturbation.penalty(base) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_update_is_never_merged(dtype: torch.dtype) -> None:
    base = regular(6, dtype=dtype)
    perturbation = p4.Invertible(base, rank=1, scale=1.0)
    with torch.no_grad():  # a column of zeros, without any rounding
        perturbation.v.zero_()[0] = 1.0
        perturbation.u.copy_(-base[:, :1])
    kept, inverse = base.clone(), perturbation.tracked.inverse.clone()
    for _ in range(25):
        report = perturbation.merge(base, force=True)
        assert report.skipped == 1
        assert "singular" in (report.reason or "")
    assert torch.equal(base, kept) and torch.equal(perturbation.tracked.inverse, inverse)


def test_what_is_merged_at_the_edge_has_an_inverse() -> None:
    """Singular but for the rounding of U: most are refused; where the rounding is kind, the inverse is one."""
    base = regular(6, 400, dtype=torch.float32)
    perturbation = p4.Invertible(base, rank=1, scale=1.0)
    with torch.no_grad():
        v = perturbation.v
        perturbation.u.copy_(-(base @ v) / v.square().sum(-2, keepdim=True))
    report = perturbation.merge(base, force=True)
    assert report.skipped > report.merged
    residual = base.double() @ perturbation.tracked.inverse.double() - torch.eye(6)
    assert residual.abs().max() <= RESIDUAL_BOUND


def test_the_residual_gates_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    base = regular(6, dtype=torch.float32)
    perturbation = moved(base)
    monkeypatch.setattr(checks, "RESIDUAL_BOUND", 1e-12)
    report = perturbation.merge(base, force=True)
    assert report.skipped == 1 and "residual is above 1e-12" in (report.reason or "")


def test_penalty_is_the_squared_hinge() -> None:
    base = regular(6)
    bounds = p4.DeterminantBounds(change=(-1.0, 1.0), total=(-2.0, 2.0), penalty_weight=0.5)
    perturbation = p4.Invertible(base, rank=1, scale=1.0, bounds=bounds)
    stretch(perturbation, base, math.exp(0.9))
    assert perturbation.penalty(base) == 0
    stretch(perturbation, base, math.exp(-2.5))
    expected = 0.5 * (1.5**2 + 0.5**2)
    assert float(perturbation.penalty(base)) == pytest.approx(expected)
    (slope,) = torch.autograd.grad(perturbation.penalty(base), perturbation.u)
    assert slope.any()


@pytest.mark.parametrize(("shape", "rate"), [({"rank": 1, "scale": 1.0}, 1e-2), ({}, 2e-3)])
def test_penalty_keeps_a_layer_from_crossing(shape: dict[str, Any], rate: float) -> None:
    """The companion paper: with a penalty the singular set is not crossed. (A step of SGD goes with the gain squared:
    5 for all entries of 3 x 3.)"""
    torch.manual_seed(0)
    bounds = replace(PAPER_TOTAL, change=(-1.0, 1.0))
    layer = p4.perturb(linear_of(torch.eye(3)), "weight", p4.Invertible, bounds=bounds, **shape)
    optimizer = torch.optim.SGD(p4.parameter_groups(layer)[1:], lr=rate)
    scheduler = p4.MergeScheduler(layer, optimizer, every=5)
    for _ in range(500):
        x = torch.randn(32, 3)
        loss = (layer(x) + x).square().mean() + 100 * p4.penalty(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    (site,) = p4.sites(layer)
    assert site.perturbation.sign(site.base) == 1


def test_training_from_initial_weights_of_torch_merges_everything() -> None:
    """2,000 steps to a permutation: no merge is badly conditioned. With the paper's bounds most are refused, and the
    loss stays ten times as large."""
    steps, arrived = 2000, 0.1
    layer = nn.Linear(64, 64)
    p4.perturb(layer, "weight", p4.Invertible, rank=2, scale=1.0)
    optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
    scheduler = p4.MergeScheduler(layer, optimizer, every=20)
    for _ in range(steps):
        x = torch.randn(256, 64)
        loss = (layer(x) - x.flip(-1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert (scheduler.merged, scheduler.skipped) == (100, 0)
    assert loss.item() < arrived


# --- long walks -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("size", "force"), [(0.1, False), (1.0, False), (0.1, True)])
def test_ten_thousand_merges_in_float32(size: float, force: bool) -> None:
    """With the paper's bounds most merges of a random walk are skipped; so another walk ignores them."""
    n, merges, generator = 64, 10_000, torch.Generator().manual_seed(1)
    base = torch.linalg.qr(torch.randn(n, n, generator=generator))[0].contiguous()
    perturbation = p4.Invertible(base, rank=1, scale=1.0, bounds="paper")
    merged = 0
    for step in range(1, merges + 1):
        with torch.no_grad():
            perturbation.u.copy_(size * torch.randn(n, 1, generator=generator))
        merged += perturbation.merge(base, generator, force=force).merged
        if step % 250 == 0:
            assert_tracked(perturbation, base)
    assert merged >= (0.99 if force else 0.09) * merges


def test_a_thousand_merges_in_float32() -> None:
    """The same at a length that runs every time; the original's residual was 1.0 here."""
    base = torch.linalg.qr(torch.randn(64, 64))[0].contiguous()
    perturbation = p4.Invertible(base, rank=1, scale=1.0)
    for step in range(1, 1001):
        with torch.no_grad():
            perturbation.u.copy_(0.1 * torch.randn(64, 1))
        perturbation.merge(base, force=True)
        if step % 100 == 0:
            assert_tracked(perturbation, base)


@pytest.mark.slow
def test_a_thousand_merges_of_rank_four_in_float32() -> None:
    """At a size where only a few columns of the inverse are corrected each time."""
    n, generator = 512, torch.Generator().manual_seed(1)
    base = torch.linalg.qr(torch.randn(n, n, generator=generator))[0].contiguous()
    perturbation = p4.Invertible(base, rank=4, scale=1.0)
    for step in range(1, 1001):
        with torch.no_grad():
            perturbation.u.copy_(1e-3 * torch.randn(n, 4, generator=generator))
        assert perturbation.merge(base, generator, force=True).ok
        if step % 100 == 0:
            assert_tracked(perturbation, base)
