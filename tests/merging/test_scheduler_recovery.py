"""Recovery from bad batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.merging.test_scheduler import adam, batch, model_of, run
from torch import nn

import p4torch as p4

# --- recovery ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer_state", ["reset_directions", "keep", "reset", "transport"])
@pytest.mark.parametrize("factory", [torch.optim.Adam, torch.optim.RMSprop])
def test_one_bad_batch_does_not_end_training(optimizer_state: Any, factory: Any) -> None:
    model = model_of(layers=1)
    optimizer = factory(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=5, optimizer_state=optimizer_state)
    run(model, scheduler, 0, 7)
    optimizer.zero_grad()
    (model(batch(0)) * torch.nan).sum().backward()
    optimizer.step()
    scheduler.step()
    run(model, scheduler, 8, 9)
    with pytest.warns(
        p4.RecoveryWarning, match="step 10: non-finite .*u.*v.*bias.* at 0.weight: reset, training goes on"
    ):
        (report,) = run(model, scheduler, 9, 10)
    assert report.skipped == 1 and set(report.nonfinite) == {"u", "v"}
    tensors = [*model.state_dict().values(), *(e for s in optimizer.state.values() for e in s.values())]
    assert all(bool(torch.as_tensor(value).isfinite().all()) for value in tensors)
    start = (model(batch(0)) + batch(0)).square().mean().detach()
    run(model, scheduler, 10, 400)
    assert (model(batch(0)) + batch(0)).square().mean().detach() < 0.5 * start


@pytest.mark.parametrize("optimizer_state", ["reset_directions", "keep", "transport"])
def test_moments_that_overflow_alone_are_forgotten_too(optimizer_state: Any) -> None:
    """A huge, finite gradient: B stays finite, but its second moment is infinite and no later step would move it."""
    model = model_of(layers=1)
    scheduler = p4.MergeScheduler(model, adam(model), every=5, optimizer_state=optimizer_state)
    scheduler.optimizer.zero_grad()
    (1e25 * model(batch(0)).sum()).backward()
    scheduler.optimizer.step()
    assert all(bool(value.isfinite().all()) for value in model.parameters())
    scheduler.step()
    with pytest.warns(p4.RecoveryWarning, match="u.*bias"):
        run(model, scheduler, 1, 5)
    before = {name: value.clone() for name, value in model.named_parameters()}
    run(model, scheduler, 5, 7)
    for name, value in model.named_parameters():
        assert value.requires_grad == (not torch.equal(value, before[name])), name


def test_a_bad_element_of_a_stack_recovers_alone() -> None:
    holder = nn.Module()
    holder.register_parameter("weight", nn.Parameter(torch.eye(3).repeat(4, 1, 1)))
    p4.perturb(holder, "weight", p4.Invertible, rank=1)
    optimizer = adam(holder)
    scheduler = p4.MergeScheduler(holder, optimizer, every=1)
    holder.weight.square().sum().backward()
    optimizer.step()
    (site,) = p4.sites(holder)
    perturbation: Any = site.perturbation
    with torch.no_grad():
        perturbation.u[1, 0] = torch.nan
    with pytest.warns(p4.RecoveryWarning):
        (report,) = scheduler.step()
    assert (report.merged, report.skipped) == (3, 1)
    assert bool(holder.weight.isfinite().all())
