"""The merge schedule: when, what it remembers, how it recovers, and that a resumed run is the same run."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from tests.merging.steps import count
from torch import Tensor, nn

import p4torch as p4

#: Some loops here count steps without any training.
pytestmark = pytest.mark.filterwarnings("ignore::p4torch.StallWarning")

#: Two orders of the same few float32 operations.
ROUNDING = 1e-5


def model_of(width: int = 4, layers: int = 2, **options: Any) -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    for layer in model:
        nn.init.eye_(layer.weight)
        p4.perturb(layer, "weight", p4.Invertible, **{"rank": 1, "scale": 1.0} | options)
    return model


def batch(step: int, width: int = 4) -> Tensor:
    return torch.randn(16, width, generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> Tensor:
    for step in range(start, stop):
        x = batch(step)
        optimizer.zero_grad()
        loss = (model(x) + x).square().mean()
        loss.backward()
        optimizer.step()
    return loss.detach()


def run(model: nn.Module, scheduler: p4.MergeScheduler, start: int, stop: int) -> list[p4.MergeReport]:
    reports = []
    for step in range(start, stop):
        train(model, scheduler.optimizer, step, step + 1)
        reports += scheduler.step()
    return reports


def adam(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.Adam(p4.parameter_groups(model), lr=lr)


# --- when -------------------------------------------------------------------------------------------------------


def test_every_n_steps() -> None:
    model = model_of()
    scheduler = p4.MergeScheduler(model, adam(model), every=5)
    steps = [bool(run(model, scheduler, step, step + 1)) for step in range(15)]
    assert [index + 1 for index, merged in enumerate(steps) if merged] == [5, 10, 15]
    assert scheduler.steps == 15 and scheduler.merged == 6 and scheduler.skipped == 0
    assert scheduler.reports["1.weight"].index == 3


@pytest.mark.parametrize(("every", "layers"), [(6, 3), (4, 4), (2, 5), (10, 1)])
def test_stagger_spreads_the_sites(every: int, layers: int) -> None:
    model = model_of(layers=layers)
    scheduler = p4.MergeScheduler(model, adam(model), every=every, stagger=True)
    merged = [[report.site for report in count(scheduler)] for _ in range(2 * every)]
    counts = [len(names) for names in merged]
    assert sorted(name for names in merged[:every] for name in names) == sorted(f"{i}.weight" for i in range(layers))
    assert merged[:every] == merged[every:]
    assert max(counts) <= -(-layers // every)


def intervals(*each: int) -> nn.Sequential:
    """Layers whose perturbations ask for intervals of their own."""
    model = model_of(layers=len(each))
    for site, interval in zip(p4.sites(model), each, strict=True):
        site.perturbation.interval = interval
    return model


@pytest.mark.parametrize("stagger", [False, True])
def test_without_an_interval_each_site_has_its_own(stagger: bool) -> None:
    each = (2, 6, 3)
    model = intervals(*each)
    scheduler = p4.MergeScheduler(model, adam(model), stagger=stagger)
    steps: list[list[int]] = [[], [], []]
    for step in range(1, 25):
        for report in run(model, scheduler, step, step + 1):
            steps[int(report.site[0])].append(step)
    for index, (interval, merged) in enumerate(zip(each, steps, strict=True)):
        first = interval - (index * interval // len(each) if stagger else 0)
        assert merged == list(range(first, 25, interval))


def test_one_interval_for_all_overrides_them() -> None:
    model = intervals(2, 6)
    scheduler = p4.MergeScheduler(model, adam(model), every=4)
    assert [len(count(scheduler)) for _ in range(8)] == [0, 0, 0, 2, 0, 0, 0, 2]


def test_the_interval_is_50_unless_a_perturbation_says_otherwise() -> None:
    model = model_of()
    scheduler = p4.MergeScheduler(model, adam(model))
    assert [step for step in range(1, 101) if count(scheduler)] == [50, 100]


def test_rewarming_is_shorter_than_the_shortest_interval() -> None:
    model = intervals(5, 2)
    with pytest.raises(p4.ArgumentError, match="`rewarm` must be below `every` = 2, got 2"):
        p4.MergeScheduler(model, adam(model), rewarm=2)


def test_a_network_merges_at_the_shortest_interval_of_its_sites() -> None:
    network = p4.JointMerge(intervals(4, 2))
    scheduler = p4.MergeScheduler(network, adam(network))
    assert [len(count(scheduler)) for _ in range(4)] == [0, 2, 0, 2]


def test_attach_steps_by_itself() -> None:
    model, reference = model_of(), None
    reference = copy.deepcopy(model)
    attached, plain = adam(model), adam(reference)
    one, other = p4.MergeScheduler(model, attached, every=3), p4.MergeScheduler(reference, plain, every=3)
    handle = one.attach()
    train(model, attached, 0, 7)
    run(reference, other, 0, 7)
    assert one.steps == 7
    for name, value in model.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name])
    handle.remove()
    train(model, attached, 7, 9)
    assert one.steps == 7


def test_correct_and_refresh_by_merge_index(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(layers=1)
    calls: list[tuple[str, int]] = []
    for name in ("correct", "refresh"):
        monkeypatch.setattr(p4.Invertible, name, lambda self, base, name=name: calls.append((name, int(self.attempts))))
    scheduler = p4.MergeScheduler(model, adam(model), every=1, correct_every=2, refresh_every=6)
    for _ in range(8):
        count(scheduler)
    assert calls == [("correct", 2), ("correct", 4), ("refresh", 6), ("correct", 8)]


def test_rewarm_is_a_scaled_learning_rate() -> None:
    """For plain SGD the updates of B are those of a learning rate that rises linearly after a merge."""
    model = model_of(layers=1)
    reference = copy.deepcopy(model)
    lr, rewarm, every = 0.05, 3, 6
    warmed = torch.optim.SGD(p4.parameter_groups(model), lr=lr)
    scheduler = p4.MergeScheduler(model, warmed, every=every, rewarm=rewarm)
    scaled = torch.optim.SGD(p4.parameter_groups(reference), lr=lr)
    merges = p4.MergeScheduler(reference, scaled, every=every)
    for step in range(20):
        age = step % every + 1 if step >= every else every
        scaled.param_groups[1]["lr"] = lr * min(1.0, age / (rewarm + 1))
        run(model, scheduler, step, step + 1)
        run(reference, merges, step, step + 1)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, reference.state_dict()[name], rtol=ROUNDING, atol=ROUNDING)
    assert warmed.param_groups[1]["lr"] == lr


# --- resume -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"every": 5},
        {"every": 5, "stagger": True, "correct_every": 2},
        {"every": 5, "rewarm": 4, "seed": 7},
        {"every": 1, "optimizer_state": "transport"},
        {"every": 4, "optimizer_state": "reset", "refresh_every": 2},
        {"stagger": True, "rewarm": 2},
    ],
)
@pytest.mark.parametrize("pause", [5, 7])
def test_a_resumed_run_is_the_same_run_bit_by_bit(options: dict[str, Any], pause: int) -> None:
    def model_with_intervals() -> nn.Module:
        model = model_of(rank=2)
        for site, interval in zip(p4.sites(model), (6, 4), strict=True):
            site.perturbation.interval = interval
        return model

    model = model_with_intervals()
    scheduler = p4.MergeScheduler(model, adam(model), **options)
    run(model, scheduler, 0, pause)
    file = io.BytesIO()
    parts = {"model": model, "optimizer": scheduler.optimizer, "scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    run(model, scheduler, pause, 23)

    torch.manual_seed(12345)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = model_with_intervals()
    again = p4.MergeScheduler(resumed, adam(resumed), **{**options, "seed": 0})
    resumed.load_state_dict(state["model"])
    again.optimizer.load_state_dict(state["optimizer"])
    again.load_state_dict(state["scheduler"])
    run(resumed, again, pause, 23)
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert again.reports == scheduler.reports
    assert (again.steps, again.merged, again.skipped) == (scheduler.steps, scheduler.merged, scheduler.skipped)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_state_of_other_sites_is_refused(layers: int) -> None:
    model, other = model_of(), model_of(layers=layers)
    scheduler, foreign = (p4.MergeScheduler(m, adam(m), every=3) for m in (model, other))
    before = copy.deepcopy(scheduler.state_dict())
    foreign.step()
    with pytest.raises(p4.CheckpointError, match=r"`state` must be of the sites \['0.weight', '1.weight'\], got"):
        scheduler.load_state_dict(foreign.state_dict())
    assert scheduler.state_dict()["steps"] == before["steps"]


def test_the_state_of_other_shapes_is_refused() -> None:
    scheduler, foreign = (p4.MergeScheduler(m, adam(m)) for m in (model_of(4), model_of(5)))
    with pytest.raises(p4.CheckpointError, match="must have the shapes"):
        scheduler.load_state_dict(foreign.state_dict())


def test_saved_state_is_a_copy() -> None:
    model = model_of()
    scheduler = p4.MergeScheduler(model, adam(model), every=4, rewarm=3)
    run(model, scheduler, 0, 5)
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    run(model, scheduler, 5, 10)
    assert str(state) == str(before)


# --- misuse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "`every` must be an integer >= 1, got 0"),
        ({"every": 1.5}, "`every` must be an integer >= 1, got 1.5"),
        ({"correct_every": -1}, "`correct_every` must be an integer >= 0, got -1"),
        ({"rewarm": -1}, "`rewarm` must be an integer >= 0, got -1"),
        ({"optimizer_state": "wipe"}, "`optimizer_state` must be one of reset_directions, restart, transport, keep"),
        ({"directions": "best"}, "`directions` must be random, gradient or None, got 'best'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    model = model_of()
    with pytest.raises(p4.ArgumentError, match=message):
        p4.MergeScheduler(model, adam(model), **options)


def test_a_model_without_sites() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(
        p4.ArgumentError, match="`model` must be a module with at least one perturbed tensor, got Linear"
    ):
        p4.MergeScheduler(model, torch.optim.Adam(model.parameters()))


def test_an_optimizer_built_before_perturb() -> None:
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    p4.perturb(layer, "weight", p4.Invertible, rank=1)
    with pytest.raises(p4.OptimizerError, match=r"lacks weight\.u, weight\.v: build it after `perturb`"):
        p4.MergeScheduler(layer, optimizer)


def test_frozen_directions_need_no_optimizer() -> None:
    model = model_of()
    for site in p4.sites(model):
        site.perturbation.v.requires_grad_(False)  # type: ignore[union-attr]
    scheduler = p4.MergeScheduler(model, adam(model), every=2)
    assert all(report.ok for report in run(model, scheduler, 0, 4))


# --- crossing ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_crosses_the_singular_set() -> None:
    """The companion paper's hardest target, -I at n = 101: det must change sign; what is tracked comes out right."""
    n, tolerance = 101, 1e-9
    layer = nn.Linear(n, n, bias=False)
    nn.init.eye_(layer.weight)
    p4.perturb(layer, "weight", p4.Invertible, rank=1, scale=1.0)
    (site,) = p4.sites(layer)
    optimizer = torch.optim.SGD(p4.parameter_groups(layer)[1:], lr=0.3)
    scheduler = p4.MergeScheduler(layer, optimizer, every=1)
    for step in range(8000):
        x = torch.randn(128, n, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (layer(x) + x).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if loss.detach() < tolerance:
            break
    assert loss.detach() < tolerance
    weight = site.base.double()
    five_digits = 1e-5
    inverse = site.perturbation.inverse(site.base).detach().double()
    assert (inverse - torch.linalg.inv(weight)).abs().max() <= five_digits
    assert site.perturbation.sign(site.base) == -1
    assert (site.perturbation.logabsdet(site.base) - torch.linalg.slogdet(weight)[1]).abs() <= five_digits
