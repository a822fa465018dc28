"""A scheduler beside model and optimizer in torch's distributed checkpoints, which load into what is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import Adam

import p4torch as p4

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
EVERY, STOP, STEPS = 3, 7, 20

Run = tuple[nn.Module, Adam, p4.MergeScheduler]


def run(**options: Any) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    nn.init.eye_(model[2].weight)
    p4.perturb(model, "0.weight", p4.Invertible, rank=2)
    p4.perturb(model, "2.weight", p4.Orthogonal)
    optimizer = Adam(p4.parameter_groups(model), lr=1e-2)
    return model, optimizer, p4.MergeScheduler(model, optimizer, every=EVERY, **options)


def train(run: Run, steps: range) -> None:
    model, optimizer, scheduler = run
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x.flip(-1)).square().mean().backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("options", [{}, {"rewarm": 2, "stagger": True}, {"directions": "gradient"}])
def test_distributed_checkpoints_resume_to_the_bit(options: dict[str, Any], tmp_path: Path) -> None:
    whole, resumed = run(**options), run(**options)
    train(whole, range(STOP))
    model, optimizer = get_state_dict(*whole[:2])
    dcp.save({"model": model, "optimizer": optimizer, "merges": whole[2]}, checkpoint_id=tmp_path, no_dist=True)
    at_stop = repr(whole[2].state_dict())
    train(whole, range(STOP, STEPS))

    model, optimizer = get_state_dict(*resumed[:2])
    dcp.load({"model": model, "optimizer": optimizer, "merges": resumed[2]}, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(*resumed[:2], model_state_dict=model, optim_state_dict=optimizer)
    assert repr(resumed[2].state_dict()) == at_stop
    train(resumed, range(STOP, STEPS))
    for (name, expected), value in zip(whole[0].state_dict().items(), resumed[0].state_dict().values(), strict=True):
        assert torch.equal(expected, value), name


def test_a_scheduler_is_stateful() -> None:
    assert isinstance(run()[2], Stateful)
