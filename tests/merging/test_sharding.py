"""Models in the shards of FSDP2: they train as one process does on all points, and all processes stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.merging.shards import (
    batch,
    build,
    optimizer_of,
    poison,
    refuse_once,
    state_of,
    train,
)
from torch import distributed as dist, multiprocessing, nn

import p4torch as p4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]
STEPS, SHORT, EVERY = 300, 30, 10
#: Sums of gradients in another order, in float32, over 300 steps.
ORDER = 1e-5

#: By name: the optimizer, the steps and the options of a schedule.
RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "adam": ("adam", STEPS, {}),
    "sgd": ("sgd", SHORT, {}),
    "transport": ("adam", SHORT, {"optimizer_state": "transport", "correct_every": 1, "rewarm": 3}),
    "restart": ("sgd", SHORT, {"optimizer_state": "restart", "refresh_every": 2, "stagger": True}),
}


def shard(model: nn.Sequential) -> nn.Sequential:
    """One layer by itself, and the rest together."""
    from torch.distributed.fsdp import fully_shard

    fully_shard(model[4])
    return fully_shard(model)  # type: ignore[no-any-return]


def run(name: str, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """The state and the reports of a run, whole or in shards."""
    kind, steps, options = RUNS[name]
    model = build()
    if ranks > 1:
        shard(model)
    optimizer = optimizer_of(model, kind)
    scheduler = p4.MergeScheduler(model, optimizer, every=EVERY, **options)
    refuse_once(model, "2.weight", attempt=1)

    def before(step: int) -> None:
        if step + 1 == steps * 2 // 3 and not options.get("stagger"):
            poison(model, "6.weight", "8.bias")
        if name == "restart":  # leaves parameters whole that are sharded between steps
            with torch.no_grad():
                model(batch(step)[0])

    reports = train(model, optimizer, scheduler, range(steps), rank, ranks, before)
    outcome = [(report.site, report.merged, report.skipped, report.reason) for report in reports]
    return {"state": state_of(model, optimizer), "reports": outcome}


def start(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)


def _train(rank: int, ranks: int, folder: str, names: list[str]) -> None:
    start(rank, ranks, folder)
    torch.save({name: run(name, rank, ranks) for name in names}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained(folder: Path, ranks: int, names: list[str]) -> list[dict[str, Any]]:
    multiprocessing.spawn(_train, args=(ranks, str(folder), names), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def check(outcomes: list[dict[str, Any]], name: str) -> None:
    """All processes have one state, which is that of one process with all points."""
    one, others = outcomes[0][name], [outcome[name] for outcome in outcomes[1:]]
    for other in others:
        assert other["reports"] == one["reports"]
        for key, value in one["state"].items():
            assert torch.equal(value, other["state"][key]), key
    expected = run(name)
    assert one["reports"] == expected["reports"]
    assert one["state"].keys() == expected["state"].keys()
    for key, value in expected["state"].items():
        torch.testing.assert_close(
            one["state"][key], value, rtol=ORDER, atol=ORDER, msg=lambda text, key=key: key + text
        )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return trained(tmp_path_factory.mktemp("ranks"), 2, list(RUNS))


@pytest.mark.filterwarnings("ignore::p4torch.RecoveryWarning")
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_as_one(outcomes: list[dict[str, Any]], name: str) -> None:
    check(outcomes, name)
    reasons = {reason for _, _, _, reason in outcomes[0][name]["reports"]}
    assert "refused once" in reasons
    assert ("B was not finite and has been reset" in reasons) is (name != "restart")


@pytest.mark.filterwarnings("ignore::p4torch.RecoveryWarning")
def test_four_processes_are_as_one(tmp_path: Path) -> None:
    check(trained(tmp_path, 4, ["adam"]), "adam")
