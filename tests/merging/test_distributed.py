"""Two processes on one machine: ranks agree on every merge, and stay bit by bit the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed as dist, multiprocessing, nn

import p4torch as p4

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
RANKS, STEPS, EVERY = 2, 20, 5
#: Two orders of the same sums, in float64.
ORDER = 1e-9


def _work(rank: int, folder: str) -> None:
    """What a process does: both cases, after another."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # every rank has random numbers of its own
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    cases = {
        "agree": _train(rank, refuses=False),
        "refuse": _train(rank, refuses=rank == 1),
        "gradient": _train(rank, refuses=False, directions="gradient"),
        "together": _train(rank, refuses=False, together=True),
        "refuse together": _train(rank, refuses=rank == 1, together=True),
    }
    cases["gradient"]["state"] = {"v": _gradient_directions(rank)["v"], **cases["gradient"]["state"]}
    torch.save(cases, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _gradient_directions(rank: int | None) -> dict[str, torch.Tensor]:
    """Directions after one step on one half of the points each, or on all of them (None)."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    model = nn.Linear(6, 6, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.eye(6))
        model.bias.zero_()
    p4.perturb(model, "weight", p4.Invertible, rank=2, directions="gradient")
    optimizer = torch.optim.SGD(p4.parameter_groups(model), lr=1e-3)
    scheduler = p4.MergeScheduler(model, optimizer, every=1)
    part = x if rank is None else x.chunk(RANKS)[rank]
    (model(part) - part.flip(-1)).pow(3).mean().backward()
    optimizer.step()
    scheduler.step()
    return {"v": next(p4.sites(model)).perturbation.v.detach()}  # type: ignore[union-attr]


def _train(rank: int, refuses: bool, directions: Any = None, together: bool = False) -> dict[str, Any]:
    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    for index in (0, 2):
        if together:  # far from what bounds of log|det| refuse
            nn.init.orthogonal_(inner[index].weight)
        p4.perturb(inner[index], "weight", p4.Invertible, rank=2)
    model = nn.parallel.DistributedDataParallel(p4.JointMerge(inner) if together else inner)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=EVERY, directions=directions)
    if refuses:
        _refuse(next(p4.sites(model)).perturbation)
    reports = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        x = torch.randn(8, 6) + rank
        (model(x) - x.flip(-1)).square().mean().backward()
        optimizer.step()
        reports += scheduler.step()
    outcome = [(report.site, report.merged, report.skipped, report.reason) for report in reports]
    return {"state": model.state_dict(), "reports": outcome}


def _refuse(perturbation: Any) -> None:
    propose = perturbation.propose

    def refusing(base: torch.Tensor) -> p4.Proposal:
        proposal = propose(base)
        proposal.vetoes.append(p4.Veto("refused here", torch.tensor(True)))
        return proposal

    perturbation.propose = refusing


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(_work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _assert_the_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_ranks_stay_the_same(results: list[dict[str, Any]]) -> None:
    one, other = (rank["agree"] for rank in results)
    _assert_the_same(one["state"], other["state"])
    assert one["reports"] == other["reports"]
    assert len(one["reports"]) == 2 * STEPS // EVERY
    assert all(merged for _, merged, _, _ in one["reports"])


def test_if_one_rank_refuses_all_skip(results: list[dict[str, Any]]) -> None:
    one, other = (rank["refuse"] for rank in results)
    _assert_the_same(one["state"], other["state"])
    for report, same in zip(one["reports"], other["reports"], strict=True):
        assert report[:3] == same[:3]
        assert (report[2] == 1) == report[0].endswith("0.weight")
    assert one["reports"][0][3] == "another rank refused"
    assert other["reports"][0][3] == "refused here"


def test_sites_that_merge_together_do_so_on_all_ranks(results: list[dict[str, Any]]) -> None:
    one, other = (rank["together"] for rank in results)
    _assert_the_same(one["state"], other["state"])
    assert one["reports"] == other["reports"]
    assert all(merged for _, merged, _, _ in one["reports"])


def test_if_one_site_of_one_rank_refuses_none_merges_anywhere(results: list[dict[str, Any]]) -> None:
    one, other = (rank["refuse together"] for rank in results)
    _assert_the_same(one["state"], other["state"])
    assert len(one["reports"]) == 2 * STEPS // EVERY
    assert all(report[1:3] == (0, 1) for report in one["reports"] + other["reports"])
    assert [report[3] for report in one["reports"][:2]] == ["merged together or not at all: another rank refused"] * 2
    assert other["reports"][0][3] == "refused here"
    assert other["reports"][1][3] == "merged together or not at all: model.0.weight: refused here"


def test_gradient_directions_are_those_of_all_points(results: list[dict[str, Any]]) -> None:
    """All ranks have the same directions, and they are what one process with all points would have drawn."""
    one, other = (rank["gradient"]["state"] for rank in results)
    _assert_the_same(one, other)
    torch.testing.assert_close(one["v"], _gradient_directions(None)["v"], rtol=ORDER, atol=ORDER)
