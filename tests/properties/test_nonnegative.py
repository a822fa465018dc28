"""Tensors without negative entries: any shape, zeros and tiny entries, and admission."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import p4torch as p4

#: exp and a product in float32.
ROUNDING = 1e-6


@pytest.mark.parametrize("shape", [(), (5,), (4, 6), (2, 3, 3, 3)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.rand(shape) + 0.1)
    before = module.weight.detach().clone()
    p4.perturb(module, "weight", p4.Nonnegative)
    assert torch.equal(module.weight, before)
    (site,) = p4.sites(module)
    shift = torch.randn(shape)
    with torch.no_grad():
        site.perturbation.b.copy_(shift)  # type: ignore[union-attr]
    torch.testing.assert_close(module.weight.detach(), before * shift.exp(), rtol=ROUNDING, atol=0)
    weight = module.weight.detach().clone()
    assert site.merge().ok
    torch.testing.assert_close(module.weight.detach(), weight, rtol=ROUNDING, atol=0)


def test_zeros_stay_and_tiny_entries_do_not_vanish() -> None:
    base = torch.tensor([[0.0, 1e-30, 1.0], [2.0, 3.0, 4.0]])
    perturbation = p4.Nonnegative(base)
    for _ in range(10):
        with torch.no_grad():
            perturbation.b.fill_(-30.0)
        assert perturbation.merge(base).ok
    assert base[0, 0] == 0
    assert (base.flatten()[1:] == torch.finfo(torch.float32).tiny).all()
    with torch.no_grad():
        perturbation.b.fill_(87.0)
    perturbation.merge(base)
    assert base[0, 0] == 0 and base.flatten()[1:].min() > 0.1  # they come back


def test_a_merge_that_would_overflow_is_skipped() -> None:
    base = torch.ones(3, 2, 2)
    perturbation = p4.Nonnegative(base)
    with torch.no_grad():
        perturbation.b[1].fill_(100.0)
    report = perturbation.merge(base)
    assert (report.merged, report.skipped) == (2, 1) and report.reason == "R_B(A) is not finite"
    assert torch.equal(base, torch.ones(3, 2, 2))


def test_merges_change_nothing_for_the_optimizer() -> None:
    weights = []
    for every in (1000, 3):
        torch.manual_seed(0)
        with pytest.warns(p4.ProjectionWarning):
            layer = p4.perturb(nn.Linear(5, 5), "weight", p4.Nonnegative, floor=0.05)
        optimizer = torch.optim.Adam(p4.parameter_groups(layer), lr=1e-2)
        scheduler = p4.MergeScheduler(layer, optimizer, every=every)
        for _ in range(60):
            optimizer.zero_grad()
            layer(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
            scheduler.step()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=60 * ROUNDING)


def test_a_floor_lets_zeros_train() -> None:
    layer = nn.Linear(6, 6)
    weight = layer.weight.detach().clone()
    with pytest.warns(p4.ProjectionWarning, match=r"Nonnegative \(defect 0\.\d+\)"):
        p4.perturb(layer, "weight", p4.Nonnegative, floor=1e-3)
    assert torch.equal(layer.weight, weight.clamp_min(1e-3))
    layer.weight.sum().backward()
    (site,) = p4.sites(layer)
    assert (site.perturbation.b.grad > 0).all()  # type: ignore[union-attr]
    assert type(p4.finalize(layer)) is nn.Linear


def test_negative_entries_without_a_floor() -> None:
    layer = nn.Linear(6, 6)
    weight = layer.weight.detach().clone()
    with pytest.warns(p4.ProjectionWarning) as caught:
        p4.perturb(layer, "weight", p4.Nonnegative)
    assert any("become 0 and stay 0 without a `floor`" in str(warning.message) for warning in caught)
    assert torch.equal(layer.weight, weight.clamp_min(0))


def test_defects() -> None:
    perturbation = p4.Nonnegative(torch.ones(2, 2))
    assert perturbation.defect(torch.zeros(2, 2)) == 0
    torch.testing.assert_close(float(perturbation.defect(torch.tensor([[4.0, -3.0], [0.0, 0.0]]))), 0.6)


def test_nothing_but_negative_entries() -> None:
    layer = nn.Linear(2, 3)
    nn.init.constant_(layer.weight, -1.0)
    with pytest.raises(p4.ArgumentError, match=r"`tensor` must be positive in some entries, .* got 1 of 1 without"):
        p4.perturb(layer, "weight", p4.Nonnegative)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (torch.eye(2, dtype=torch.complex64), {}, "`base` must be real, got torch.complex64"),
        (torch.full((2, 2), torch.inf), {}, "`base` must be finite"),
        (torch.eye(2), {"floor": -1.0}, "`floor` must be a number >= 0, got -1.0"),
        ("weight", {}, r"`base` must be a tensor .*, got builtins.str"),
    ],
)
def test_bad_input(base: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.Nonnegative(base, **options)
