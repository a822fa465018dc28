"""Two processes with half of the points each train as one process with all of them, in many configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed as dist, multiprocessing, nn

import p4torch as p4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]
RANKS, STEPS, EVERY, WIDTH = 2, 12, 4, 6
#: Two orders of the same float64 sums, through the steps of a training.
ORDER = 1e-12

PROPERTIES: dict[str, Callable[..., Any]] = {
    "additive": partial(p4.Invertible, rank=2),
    "exponential": partial(p4.Invertible, rank=1, form="exponential"),
    "rotation": partial(p4.Orthogonal, rank=2, directions="gradient"),
    "blocks": partial(p4.Orthogonal, block=2),
    "positive": partial(p4.PositiveDefinite, rank=1),
    "norm": partial(p4.SpectralBound, bound=2.0),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "restart": {"optimizer_state": "restart", "rewarm": 2},
    "transport": {"optimizer_state": "transport", "stagger": True},
}
CASES = list(product(PROPERTIES, OPTIONS))


def train(case: tuple[str, str], rank: int | None) -> dict[str, Tensor]:
    """The state after training on one half of the points, or on all of them (None)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).double()
    nn.init.eye_(model[0].weight)
    p4.perturb(model, "0.weight", PROPERTIES[case[0]])
    optimizer = torch.optim.SGD(p4.parameter_groups(model), lr=1e-2, momentum=0.9)
    wrapped = model if rank is None else nn.parallel.DistributedDataParallel(model)
    schedule = p4.MergeScheduler(wrapped, optimizer, every=EVERY, **OPTIONS[case[1]])
    for step in range(STEPS):
        x = torch.randn(16, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        part = x if rank is None else x.chunk(RANKS)[rank]
        optimizer.zero_grad()
        (wrapped(part) - part.flip(-1)).square().mean().backward()
        optimizer.step()
        schedule.step()
    assert schedule.merged > 0
    return model.state_dict()


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    torch.save([train(case, rank) for case in CASES], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_are_as_one_on_all_points(tmp_path: Path) -> None:
    multiprocessing.spawn(_work, args=(str(tmp_path),), nprocs=RANKS)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS))
    for case, state, same in zip(CASES, one, other, strict=True):
        expected = train(case, None)
        for name, value in state.items():
            assert torch.equal(value, same[name]), (case, name)
            torch.testing.assert_close(value, expected[name], rtol=ORDER, atol=ORDER, msg=f"{case}, {name}")
