"""FlatAdam against torch's Adam: the same numbers, whatever happens to parameters, gradients and state in between."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import p4torch as p4
from p4torch.errors import ArgumentError, OptimizerError
from p4torch.merging import optimizer_state as memory
from p4torch.training import FlatAdam

#: One rounding of a float64 step, where vectors of another length round in another order.
ROUNDING = 1e-14


def network(seed: int, depth: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.SiLU())]
    return nn.Sequential(*layers).double()


def groups(model: nn.Sequential) -> list[dict[str, object]]:
    first = list(model[0].parameters())
    return [{"params": first, "lr": 3e-3, "weight_decay": 0.1}, {"params": list(model[2:].parameters())}]


def loss(model: nn.Module, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model(torch.randn(5, 4).double()).square().sum()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    loss(model, seed).backward()
    optimizer.step()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**30),
    resets=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=6),
    depth=st.integers(1, 3),
)
def test_the_same_as_adam_also_when_the_memory_of_single_parameters_is_reset(
    seed: int, resets: list[tuple[int, int]], depth: int
) -> None:
    model = network(seed, depth)
    reference = copy.deepcopy(model)
    flat, plain = FlatAdam(groups(model), lr=1e-2), torch.optim.Adam(groups(reference), lr=1e-2)
    for index in range(10):
        step(model, flat, seed + index)
        step(reference, plain, seed + index)
        for _, which in (entry for entry in resets if entry[0] == index):
            for of, optimizer in ((model, flat), (reference, plain)):
                parameters = list(of.parameters())
                memory.reset(optimizer, parameters[which % len(parameters)])
    assert_same(model, reference)


def test_values_and_gradients_that_are_rebound_are_taken_over() -> None:
    model = network(0)
    reference = copy.deepcopy(model)
    flat, plain = FlatAdam(model.parameters()), torch.optim.Adam(reference.parameters())
    for index in range(4):
        for of, optimizer in ((model, flat), (reference, plain)):
            for parameter in of.parameters():
                parameter.grad = None
            loss(of, index).backward()
            optimizer.step()
            with torch.no_grad():
                of[0].weight.data = of[0].weight * 1.5
    step(model, flat, 9)
    step(reference, plain, 9)
    assert_same(model, reference)


def test_state_goes_through_a_file_to_and_from_adam() -> None:
    model = network(1)
    flat = FlatAdam(groups(model))
    for index in range(3):
        step(model, flat, index)
    file = io.BytesIO()
    torch.save([model.state_dict(), flat.state_dict()], file)
    file.seek(0)
    values, state = torch.load(file)
    models = [network(2), network(3)]
    optimizers = [FlatAdam(groups(models[0])), torch.optim.Adam(groups(models[1]))]
    for other, optimizer in zip(models, optimizers, strict=True):
        other.load_state_dict(values)
        optimizer.load_state_dict(copy.deepcopy(state))
    for one, optimizer in [(model, flat), *zip(models, optimizers, strict=True)]:
        step(one, optimizer, 7)
    assert_same(model, models[0])
    assert_same(model, models[1])


def test_clipping_is_that_of_torch() -> None:
    model = network(4)
    reference = copy.deepcopy(model)
    flat = FlatAdam(model.parameters())
    for largest in (1e-2, 1e6):
        flat.zero_grad()
        reference.zero_grad()
        loss(model, 5).backward()
        loss(reference, 5).backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), largest)
        torch.testing.assert_close(flat.clip(largest), norm, rtol=ROUNDING, atol=0)
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=ROUNDING, atol=ROUNDING)


def test_a_closure_gives_the_loss() -> None:
    model = network(5)
    flat = FlatAdam(model.parameters())

    def closure() -> float:
        flat.zero_grad()
        value = loss(model, 0)
        value.backward()
        return float(value.detach())

    first, second = flat.step(closure), flat.step(closure)
    assert second < first


def test_merges_reset_what_they_would_reset_in_adam() -> None:
    def perturbed() -> nn.Sequential:
        model = network(6)
        for index in (0, 2):
            p4.perturb(model[index], "weight", p4.Invertible, rank=1)
        return model

    model, reference = perturbed(), perturbed()
    flat, plain = FlatAdam(p4.parameter_groups(model)), torch.optim.Adam(p4.parameter_groups(reference))
    schedules = [p4.MergeScheduler(model, flat, every=3), p4.MergeScheduler(reference, plain, every=3)]
    for index in range(10):
        step(model, flat, index)
        step(reference, plain, index)
        for schedule in schedules:
            schedule.step()
    assert schedules[0].merged == schedules[1].merged > 0
    assert_same(model, reference)


def test_bad_input() -> None:
    mixed = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2).double())]
    with pytest.raises(ArgumentError, match="params"):
        FlatAdam(mixed)
    with pytest.raises(OptimizerError, match="param_group"):
        FlatAdam(mixed[:1]).add_param_group({"params": mixed[1:]})
    assert FlatAdam([{"params": []}, {"params": mixed[:1]}]).step() is None
