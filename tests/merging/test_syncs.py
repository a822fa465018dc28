"""How often a step, and a merge, wait for the device: counted on a CPU, where each reading of a number shows."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.constructors import PERTURBATIONS
from tests.merging.test_stacks import STACKABLE, model_of
from torch.utils._python_dispatch import TorchDispatchMode

import p4torch as p4

#: Operations whose result a device must bring to the program.
READING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
}

#: These look at numbers on a CPU alone, where that costs nothing: how many terms of a series, or sweeps, it takes.
ON_A_CPU_ALONE = {"_resolvent", "_fixed_point"}

#: Of a merge of sites that are alike: whether all is accepted, whether an inverse or a basis has drifted, whether a
#: matrix is definite; and up to four more where one has drifted. Besides, two transfers of many numbers at once, which
#: are not seen here: norms, and what is finite.
MERGE = 7


class Readings(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in READING:
            self.count += not ON_A_CPU_ALONE & {frame.name for frame in traceback.extract_stack()}
        return func(*args, **(kwargs or {}))


def _readings(call: Callable[[], object]) -> int:
    with Readings() as readings:
        call()
    return readings.count


def _training(name: str, sites: int) -> tuple[Callable[[], None], p4.MergeScheduler]:
    model = model_of(PERTURBATIONS[name], sites)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], 1e-4, momentum=0.9)
    scheduler = p4.MergeScheduler(model, optimizer, 3, correct_every=0)

    def step() -> None:
        torch.stack([part.weight.abs().square().sum() for part in model]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, scheduler


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_step_reads_nothing(name: str) -> None:
    step, scheduler = _training(name, 1)
    for _ in range(2):
        step()
        scheduler.step()  # the first directions are counted from here
    assert _readings(step) == 0
    scheduler.step()
    assert _readings(step) == 0
    assert _readings(scheduler.step) == 0


@pytest.mark.parametrize("name", STACKABLE)
def test_readings_of_a_merge_do_not_grow_with_the_sites(name: str) -> None:
    for sites in (1, 6):
        step, scheduler = _training(name, sites)
        for _ in range(6):
            step()
            count = _readings(scheduler.step)
        assert scheduler.merged > 0 and scheduler.skipped == 0
        assert 0 < count <= MERGE
