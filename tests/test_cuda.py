"""The same on a CUDA device, where there is one: training with merges, equal directions, no host sync in a step."""

from __future__ import annotations

import pytest
import torch

import p4torch as p4
from p4torch.flows import Flow, InvertibleMLP, StandardNormal

pytestmark = pytest.mark.cuda

#: float32 sums in another order, through 20 layers.
TOLERANCE = 1e-3


def _flow() -> Flow:
    torch.manual_seed(0)
    return Flow(InvertibleMLP(2, depth=20, init="orthogonal"), StandardNormal(2))


def _train(flow: Flow, x: torch.Tensor, steps: int) -> p4.MergeScheduler:
    optimizer = torch.optim.Adam(p4.parameter_groups(flow), lr=1e-3)
    schedule = p4.MergeScheduler(flow, optimizer, every=10)
    for _ in range(steps):
        optimizer.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()
        schedule.step()
    return schedule


def test_training_and_directions_agree_with_the_cpu() -> None:
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(1))
    here, there = _flow(), _flow().to("cuda")
    for flow, points in ((here, x), (there, x.cuda())):
        assert _train(flow, points, steps=30).skipped == 0
    ours, theirs = next(p4.sites(here)).perturbation, next(p4.sites(there)).perturbation
    assert theirs.tracked.inverse.is_cuda  # type: ignore[union-attr]
    assert torch.equal(ours.get_parameter("v"), theirs.get_parameter("v").cpu())
    torch.testing.assert_close(there.log_prob(x.cuda()).cpu(), here.log_prob(x), rtol=TOLERANCE, atol=TOLERANCE)


def test_no_host_sync_in_a_step() -> None:
    flow, x = _flow().to("cuda"), torch.randn(64, 2, device="cuda")
    optimizer = torch.optim.SGD(p4.parameter_groups(flow), lr=1e-3)
    schedule = p4.MergeScheduler(flow, optimizer, every=1000)
    for mode in ("default", "error"):  # the first round loads kernels
        torch.cuda.set_sync_debug_mode(mode)
        try:
            (-flow.log_prob(x).mean()).backward()
            optimizer.step()
            schedule.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
