"""Only steps that the optimizer really makes count, and what trains another model than the schedule's is noticed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.merging.steps import count
from torch import Tensor, nn

import p4torch as p4
from p4torch.merging import steps as counting

WIDTH = 4


def model_of(property: Any = p4.Invertible, **options: Any) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    nn.init.eye_(model[0].weight)
    p4.perturb(model[0], "weight", property, **options)
    return model


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)


def backward(model: nn.Module, index: int, count: int = 16) -> None:
    x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(index))
    (model(x) - x.flip(-1)).square().mean().backward()


def train(model: nn.Module, optimizer: Any, schedule: p4.MergeScheduler, steps: int) -> None:
    for index in range(steps):
        optimizer.zero_grad()
        backward(model, index)
        optimizer.step()
        schedule.step()


# --- what counts ----------------------------------------------------------------------------------------------------


def test_micro_batches_do_not_count() -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=2)
    for index in range(12):
        backward(model, index)
        if index % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    assert (schedule.steps, schedule.merged) == (4, 2)


def test_steps_without_a_call_are_made_up_for() -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=2)
    for index in range(4):
        backward(model, index)
        optimizer.step()
    assert len(schedule.step()) == 2 and schedule.steps == 4


def test_attach_and_step_together_count_once() -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=3)
    schedule.attach()
    train(model, optimizer, schedule, 9)
    assert (schedule.steps, schedule.merged) == (9, 3)


def test_a_step_that_loss_scaling_leaves_out_does_not_count() -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for index in range(4):
        optimizer.zero_grad()
        x = torch.full((2, WIDTH), torch.inf if index == 1 else 0.5)
        scaler.scale(model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    assert schedule.steps == schedule.merged == 3


@pytest.mark.parametrize("attached", [False, True])
def test_an_optimizer_that_accelerate_has_wrapped(attached: bool) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=4, cpu=True)
    model = model_of()
    model, optimizer = accelerator.prepare(model, adam(model))
    schedule = p4.MergeScheduler(model, optimizer, every=2)
    if attached:
        schedule.attach()
    for index in range(16):
        with accelerator.accumulate(model):
            backward(model, index)
            optimizer.step()
            optimizer.zero_grad()
            if not attached:
                schedule.step()
    assert (schedule.steps, schedule.merged) == (4, 2)


def test_what_wraps_no_torch_optimizer_is_refused() -> None:
    class Wrapper:
        optimizer = "none"

    with pytest.raises(p4.ArgumentError, match="`optimizer` must be a torch optimizer, got str"):
        p4.MergeScheduler(model_of(), Wrapper())  # type: ignore[arg-type]


# --- what is noticed ------------------------------------------------------------------------------------------------


def test_an_optimizer_that_was_replaced_is_noticed() -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=50)
    train(model, optimizer, schedule, 3)
    with pytest.raises(
        p4.OptimizerError, match="made no step in 5 calls of `step\\(\\)` in which the perturbations moved"
    ):
        train(model, adam(model), schedule, counting.FOREIGN)


def test_a_copy_that_trains_in_place_of_the_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "IDLE", 20)
    model = model_of()
    schedule = p4.MergeScheduler(model, adam(model))
    other = copy.deepcopy(model)
    with pytest.warns(p4.StallWarning, match="made no step in 20 calls") as seen:
        train(other, adam(other), schedule, 45)
    assert len(seen) == 1


@pytest.mark.parametrize("attached", [False, True])
def test_a_deep_copy_is_a_run_of_its_own(attached: bool) -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=3)
    if attached:
        schedule.attach()
    train(model, optimizer, schedule, 4)
    copies: Any = copy.deepcopy((model, optimizer, schedule))
    train(model, optimizer, schedule, 5)
    assert copies[2].steps == 4
    train(*copies, 5)
    assert copies[2].steps == schedule.steps == 9 and copies[2].merged == 3
    for one, other in zip(model.state_dict().values(), copies[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_site_that_is_added_later_is_noticed() -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=2)
    train(model, optimizer, schedule, 2)
    p4.perturb(model[2], "weight", p4.LowRankUpdate)
    with pytest.raises(p4.OptimizerError, match=r"was made; other ones: 2\.weight"):
        train(model, optimizer, schedule, 2)


def test_a_base_that_was_replaced_is_noticed() -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=2)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(p4.OptimizerError, match=r"other ones: 0\.weight"):
        train(model, optimizer, schedule, 2)


# --- inside compiled regions ----------------------------------------------------------------------------------------


def whole_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - x.flip(-1)).square().mean().backward()
    optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["optimizer", "whole", "with schedule"])
def test_tracked_scalars_follow_merges_of_a_compiled_step(what: str) -> None:
    """In a compiled region torch drops writes into scalars of another dtype on a CPU."""
    torch.compiler.reset()
    model = model_of(rank=2).double()
    optimizer = adam(model)
    schedule = p4.MergeScheduler(model, optimizer, every=4)
    x = torch.randn(16, WIDTH, dtype=torch.float64)
    if what != "with schedule":
        schedule.attach()

    def with_schedule() -> None:
        whole_step(model, optimizer, x)
        schedule.step()

    compiled = torch.compile(optimizer.step)

    def by_optimizer() -> None:
        optimizer.zero_grad()
        (model(x) - x.flip(-1)).square().mean().backward()
        compiled()

    whole = torch.compile(lambda: whole_step(model, optimizer, x))
    step = {"optimizer": by_optimizer, "whole": whole, "with schedule": torch.compile(with_schedule)}[what]
    for _ in range(12):
        step()
    assert schedule.merged == 3
    (site,) = p4.sites(model)
    sign, logabsdet = torch.linalg.slogdet(site.base)
    torch.testing.assert_close(site.perturbation.logabsdet(site.base), logabsdet)
    assert torch.equal(site.perturbation.sign(site.base), sign)
    assert float(logabsdet.abs()) > 1e-3  # it has moved


def test_a_compiled_forward_refreshes_a_stale_inverse_outside() -> None:
    torch.compiler.reset()
    layer = p4.perturb(nn.Linear(WIDTH, WIDTH), "weight", p4.Invertible, rank=1)
    (site,) = p4.sites(layer)
    layer.double()  # rounds nothing, but the inverse is that of float32

    def logabsdet() -> Tensor:
        return site.perturbation.logabsdet(site.base)

    assert site.perturbation.tracked.stale  # type: ignore[union-attr]
    torch.testing.assert_close(torch.compile(logabsdet)(), torch.linalg.slogdet(layer.weight)[1])


# --- batches that are not finite ------------------------------------------------------------------------------------


def spoil(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: p4.MergeScheduler) -> None:
    optimizer.zero_grad()
    model(torch.full((2, WIDTH), torch.nan)).sum().backward()
    optimizer.step()
    schedule.step()


def test_what_is_lost_outside_of_the_sites_is_named() -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=1)
    with pytest.warns(p4.RecoveryWarning, match=r"outside of the sites are not finite either.*: 2\.weight"):
        spoil(model, optimizer, schedule)


def test_where_nothing_is_lost_training_goes_on() -> None:
    model = model_of()[:1]
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=1)
    with pytest.warns(p4.RecoveryWarning, match="training goes on"):
        spoil(model, optimizer, schedule)


def test_steps_with_gradients_that_are_not_finite_can_be_left_out() -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, optimizer := adam(model), every=2, skip_nonfinite=True)
    train(model, optimizer, schedule, 3)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    with pytest.warns(p4.RecoveryWarning, match="step 4: a gradient is not finite: this step is left out"):
        spoil(model, optimizer, schedule)
    assert str((model.state_dict(), optimizer.state_dict()["state"])) == str(before)
    assert schedule.steps == 3
    train(model, optimizer, schedule, 1)
    assert (schedule.steps, schedule.merged) == (4, 2)


def test_a_step_without_gradients_counts() -> None:
    model = model_of()
    schedule = p4.MergeScheduler(model, adam(model), every=1, skip_nonfinite=True)
    assert len(count(schedule)) == 1
