"""Two processes: one reduction a merge, what they compare when a schedule is made, and optimizers that share state."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tests.merging.shards import Collectives
from torch import Tensor, distributed as dist, multiprocessing, nn

import p4torch as p4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]
RANKS, STEPS, EVERY = 2, 12, 4
States = dict[str, Tensor]


class Stack(nn.Module):
    """Two matrices at once."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.mT).sum(0)


def build(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), Stack(), nn.Tanh(), nn.Linear(6, 6))
    for index, property in ((0, p4.Orthogonal), (2, p4.Invertible), (4, p4.LowRankUpdate)):
        if property is p4.Orthogonal:
            nn.init.orthogonal_(model[index].weight)
        p4.perturb(model[index], "weight", property, rank=2)
    return model


def train(model: nn.Module, rank: int, optimizer: Any = None, poisoned: int = -1, **options: Any) -> dict[str, Any]:
    """Some steps; at a `poisoned` one, B of the stack's first matrix is not finite in the last process alone."""
    optimizer = optimizer or torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=EVERY, **options)
    sizes, reports = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(RANKS * step + rank))
        (model(x) - x.flip(-1)).square().mean().backward()
        optimizer.step()
        if step == poisoned and rank == RANKS - 1:
            list(p4.sites(model))[1].perturbation.u.detach()[0, 0] = torch.nan  # type: ignore[operator]
        with Collectives() as collectives:
            reports += scheduler.step()
        sizes.append(collectives.sizes)
    outcome = [(report.site, report.merged, report.skipped, report.reason) for report in reports]
    return {"state": model.state_dict(), "reports": outcome, "sizes": sizes, "seed": scheduler.seed}


def wrapped(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def other_seeds(rank: int) -> dict[str, Any]:
    """Seeds of directions that differ, and the warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = train(wrapped(build()), rank, seed=rank + 3)
    outcome["warnings"] = [str(warning.message) for warning in caught if warning.category is p4.ProcessWarning]
    return outcome


def other_values(rank: int) -> dict[str, Any]:
    """Models that differ, with a schedule that is made before they are wrapped."""
    model = build(seed=rank)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        p4.MergeScheduler(model, optimizer, every=EVERY)
    outcome = train(model, 0, optimizer)
    outcome["warnings"] = [str(warning.message) for warning in caught if warning.category is p4.ProcessWarning]
    return outcome


def other_models(rank: int) -> dict[str, Any]:
    """One model a process: refused together, and trained apart in groups of their own."""
    model = build(seed=rank)[: 3 + 2 * rank]
    messages = {}
    for name, options in {"models": {}, "group": {"process_group": "gloo"}}.items():
        try:
            train(model, rank, **options)
        except p4.ArgumentError as error:
            messages[name] = str(error)
    try:
        train(build(), rank, correct_every=rank)
    except p4.ArgumentError as error:
        messages["options"] = str(error)
    group, _ = dist.new_subgroups(group_size=1)
    return {**train(model, 0, process_group=group), "messages": messages}


def other_states(rank: int) -> str:
    """States of different steps."""
    model = build()
    scheduler = p4.MergeScheduler(model, torch.optim.Adam(p4.parameter_groups(model)), every=EVERY)
    try:
        scheduler.load_state_dict({**scheduler.state_dict(), "steps": rank})
    except p4.CheckpointError as error:
        return str(error)
    return ""


def shared_state(rank: int, poisoned: int = -1, **options: Any) -> dict[str, Any]:
    """Adam's state, each part of it in one process only."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = wrapped(build())
    values = [value for value in model.parameters() if value.requires_grad]
    optimizer = ZeroRedundancyOptimizer(values, torch.optim.Adam, lr=1e-2)
    return train(model, rank, optimizer, poisoned, **options)


def all_state(rank: int, poisoned: int = -1, **options: Any) -> dict[str, Any]:
    """The same, all of it in each process."""
    model = wrapped(build())
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    return train(model, rank, optimizer, poisoned, **options)


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    warnings.simplefilter("ignore")
    outcome: dict[str, Any] = {
        case.__name__: case(rank) for case in (other_seeds, other_values, other_models, other_states)
    }
    outcome["poisoned"] = train(wrapped(build()), rank, poisoned=2 * EVERY - 1)
    outcome["poisoned gradient"] = train(wrapped(build()), rank, poisoned=2 * EVERY - 1, directions="gradient")
    for option in OPTIONS:
        outcome[f"shared {option}"] = shared_state(rank, optimizer_state=option)
        outcome[f"all {option}"] = all_state(rank, optimizer_state=option)
    outcome["shared poisoned"] = shared_state(rank, 2 * EVERY - 1)
    outcome["all poisoned"] = all_state(rank, 2 * EVERY - 1)
    torch.save(outcome, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


OPTIONS = ("reset_directions", "restart", "transport", "reset")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(_work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["reports"] == other["reports"]
    for name, value in one["state"].items():
        assert torch.equal(value, other["state"][name]), name


def test_all_sites_of_a_merge_are_decided_in_one_reduction(outcomes: list[dict[str, Any]]) -> None:
    """Of as many small numbers as there are decisions; other steps need none."""
    for outcome in outcomes:
        for step, sizes in enumerate(outcome["all reset_directions"]["sizes"], start=1):
            assert len(sizes) == (step % EVERY == 0)
            assert sum(sizes) < 500


def test_a_perturbation_that_is_poisoned_in_one_process_is_reset_in_all(outcomes: list[dict[str, Any]]) -> None:
    for name in ("poisoned", "poisoned gradient"):
        one, other = (outcome[name] for outcome in outcomes)
        _assert_equal(one, other)
        reasons = [report for report in one["reports"] if report[2]]
        assert reasons == [("2.weight", 1, 1, "B was not finite and has been reset")]


def test_the_first_seed_is_that_of_all(outcomes: list[dict[str, Any]]) -> None:
    one, other = (outcome["other_seeds"] for outcome in outcomes)
    _assert_equal(one, other)
    assert one["seed"] == other["seed"] == 3
    assert [len(outcome["other_seeds"]["warnings"]) for outcome in outcomes] == [1, 1]
    assert "`seed` differs between processes" in one["warnings"][0]


def test_the_first_values_are_those_of_all(outcomes: list[dict[str, Any]]) -> None:
    one, other = (outcome["other_values"] for outcome in outcomes)
    _assert_equal(one, other)
    assert "0.weight" in one["warnings"][0] and "all take those of the first" in one["warnings"][0]


def test_other_models_are_refused_but_for_groups_of_their_own(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        messages = outcome["other_models"]["messages"]
        assert "number of sites: 2 in process 0 and 3 in process 1" in messages["models"]
        assert "new_subgroups" in messages["models"]
        assert "correct_every: 0 in process 0 and 1 in process 1" in messages["options"]
        assert "a process group" in messages["group"]
        assert not any(outcome["other_models"]["sizes"])
    one, other = (outcome["other_models"] for outcome in outcomes)
    assert len(one["reports"]) == 2 * STEPS // EVERY and len(other["reports"]) == 3 * STEPS // EVERY


def test_states_of_other_steps_are_refused(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert "steps: 0 in process 0 and 1 in process 1" in outcome["other_states"]


@pytest.mark.parametrize("name", [*OPTIONS, "poisoned"])
def test_state_that_is_shared_out_is_cared_for(outcomes: list[dict[str, Any]], name: str) -> None:
    """ZeroRedundancyOptimizer around Adam does what Adam does."""
    for outcome in outcomes:
        _assert_equal(outcome[f"shared {name}"], outcome[f"all {name}"])
    _assert_equal(outcomes[0][f"shared {name}"], outcomes[1][f"shared {name}"])
