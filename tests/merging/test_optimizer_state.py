"""An optimizer's memory: the intended entries change, in place, and no others, in any torch optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.merging.steps import count
from torch import Tensor, nn
from torch.optim import Optimizer

import p4torch as p4
from p4torch.merging import optimizer_state as memory

Factory = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, Factory] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "Adam-foreach": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True),
    "Adam-fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "AdamW-amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "SGD-momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "RMSprop-momentum": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1e-2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-2),
}

State = dict[str, dict[str, Any]]


def model_of(rank: int = 1, **options: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    for layer in (model[0], model[2]):
        nn.init.eye_(layer.weight)
    p4.perturb(model[0], "weight", p4.Invertible, rank=rank, **options)
    return model


def train(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def state_of(model: nn.Module, optimizer: Optimizer) -> State:
    """The optimizer's state by short parameter names, copied."""
    names = {value: name.split(".")[-1] if "parametrizations" in name else name for name, value in _named(model)}
    return {names[value]: copy.deepcopy(entries) for value, entries in optimizer.state.items()}


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else a == b

    return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_is_a_first_step_again(name: str) -> None:
    """After a reset the optimizer moves the parameter as one that was never stepped before."""
    parameter, other = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(3))
    optimizer = OPTIMIZERS[name]([parameter, other])
    for _ in range(3):
        parameter.grad, other.grad = torch.randn(4, 2), torch.randn(3)
        optimizer.step()
    kept = copy.deepcopy(optimizer.state[other])
    identities = {key: id(entry) for key, entry in optimizer.state[parameter].items() if isinstance(entry, Tensor)}
    assert memory.reset(optimizer, parameter)
    assert same(optimizer.state[other], kept)
    assert identities == {key: id(optimizer.state[parameter][key]) for key in identities}  # in place

    fresh = nn.Parameter(parameter.detach().clone())
    first = OPTIMIZERS[name]([fresh])
    for _ in range(2):
        parameter.grad = torch.randn(4, 2)
        fresh.grad = parameter.grad.clone()
        other.grad = None
        optimizer.step()
        first.step()
    torch.testing.assert_close(parameter, fresh, rtol=1e-6, atol=1e-7)


#: Optimizers, as listed above, that keep no running mean of the gradient.
WITHOUT_MOMENTUM = ("Adagrad", "Adadelta", "Rprop", "ASGD")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("option", ["reset_directions", "restart", "transport", "keep", "reset"])
def test_a_merge_changes_the_intended_entries_only(name: str, option: Any) -> None:
    model = model_of(rank=2)
    optimizer = OPTIMIZERS[name](p4.parameter_groups(model))
    scheduler = p4.MergeScheduler(model, optimizer, every=3, optimizer_state=option)
    train(model, optimizer)
    before = state_of(model, optimizer)
    assert scheduler.step()[0].ok
    after = state_of(model, optimizer)
    for factor in ("u", "v"):  # what is an average of values follows, always
        before[factor].pop("ax", None), after[factor].pop("ax", None)
    changed = {key for key in before if not same(before[key], after[key])}
    momentum = {"u"} if name not in WITHOUT_MOMENTUM else set()
    expected = {
        "reset_directions": {"v"},
        "restart": {"v"} | momentum,
        "transport": {"v"} | momentum,
        "keep": set(),
        "reset": {"u", "v"},
    }[option]
    assert changed == expected
    train(model, optimizer)  # the state is still one that the optimizer can work with


def test_transport_maps_momentum_onto_the_new_directions() -> None:
    model = model_of(rank=2)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=3, optimizer_state="transport")
    train(model, optimizer)
    (site,) = p4.sites(model)
    perturbation: Any = site.perturbation
    old, before = perturbation.v.detach().clone(), state_of(model, optimizer)["u"]
    scheduler.step()
    matrix = torch.linalg.pinv(old.double()) @ perturbation.v.detach().double()
    after = state_of(model, optimizer)["u"]
    torch.testing.assert_close(after["exp_avg"], (before["exp_avg"].double() @ matrix).float())
    assert torch.equal(after["exp_avg_sq"], before["exp_avg_sq"])
    assert torch.equal(after["step"], before["step"])


def test_restart_clears_momentum_and_keeps_sizes() -> None:
    model = model_of(rank=2)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=1, optimizer_state="restart")
    train(model, optimizer)
    before = state_of(model, optimizer)["u"]
    scheduler.step()
    after = state_of(model, optimizer)["u"]
    assert not after["exp_avg"].any() and before["exp_avg"].any()
    assert torch.equal(after["exp_avg_sq"], before["exp_avg_sq"])
    assert torch.equal(after["step"], before["step"])


@pytest.mark.parametrize("option", ["reset_directions", "restart", "transport", "keep", "reset"])
def test_a_state_that_is_not_created_yet(option: Any) -> None:
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = p4.MergeScheduler(model, optimizer, every=1, optimizer_state=option)
    assert count(scheduler)[0].ok
    assert not optimizer.state
    train(model, optimizer)
    scheduler.step()


def test_optimizers_without_memory() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scheduler = p4.MergeScheduler(model, optimizer, every=1)
    train(model, optimizer)
    assert scheduler.step()[0].ok


def test_another_optimizer_that_steps_is_noticed() -> None:
    model = model_of()
    optimizer, wrong = torch.optim.Adam(model.parameters()), torch.optim.Adam(model.parameters())
    scheduler = p4.MergeScheduler(model, wrong, every=1)
    with pytest.raises(p4.OptimizerError, match="but made no step in 5 calls"):
        for _ in range(5):
            train(model, optimizer, 1)
            scheduler.step()


@pytest.mark.parametrize("forget", [memory.reset, memory.redraw])
@pytest.mark.parametrize("entry", [{"history": [1, 2]}, {"codes": torch.zeros(2, dtype=torch.uint8)}, {"exp_avg": [1]}])
def test_state_of_an_unknown_kind_is_dropped(entry: dict[str, Any], forget: Callable[..., bool]) -> None:
    parameter, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter, other], lr=1e-2)
    assert not forget(optimizer, parameter)
    for value in (parameter, other):
        optimizer.state[value] = {"exp_avg_sq": torch.ones(2), **entry}
    assert forget(optimizer, parameter)
    assert set(optimizer.state) == {other}


def test_moments_of_adamw_amsgrad_are_all_reset() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], amsgrad=True)
    parameter.grad = torch.ones(2)
    optimizer.step()
    memory.reset(optimizer, parameter)
    assert set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert not any(entry.any() for entry in optimizer.state[parameter].values())


# --- coordinates that a merge redraws ---------------------------------------------------------------------------

#: Optimizers that know the size of each entry's gradient, and under which names.
SIZES = {
    "Adam": {"exp_avg_sq"},
    "Adam-foreach": {"exp_avg_sq"},
    "Adam-fused": {"exp_avg_sq"},
    "AdamW-amsgrad": {"exp_avg_sq", "max_exp_avg_sq"},
    "SGD-momentum": set(),
    "RMSprop-momentum": {"square_avg"},
    "Adagrad": {"sum"},
    "NAdam": {"exp_avg_sq"},
    "RAdam": {"exp_avg_sq"},
    "Adamax": {"exp_inf"},
    "Adadelta": {"square_avg", "acc_delta"},
    "Rprop": {"step_size"},
    "ASGD": set(),
}


class Blocks(p4.Perturbation):
    """A + P B Pᵀ with a permutation P of the first dimension that a merge redraws; B `(..., n, m)` starts at 0."""

    permuted = ("b",)
    order: Tensor

    def __init__(self, base: Tensor) -> None:
        super().__init__(base)
        self.b = nn.Parameter(torch.zeros_like(base))
        self.register_buffer("order", torch.arange(base.shape[-2]))

    def forward(self, base: Tensor) -> Tensor:
        return base + self.b[..., self.order, :]

    def reset(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            self.b.zero_()
            if generator is not None:
                self.order.copy_(torch.randperm(len(self.order), generator=generator))

    def defect(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(self.skips, dtype=tensor.dtype)


def blocks_after_a_merge(name: str, option: Any, shape: tuple[int, ...] = (4, 4)) -> tuple[Any, dict, dict]:
    """B, and the optimizer's state of it before and after."""
    holder = nn.Module()
    holder.register_parameter("weight", nn.Parameter(torch.randn(shape)))
    p4.perturb(holder, "weight", Blocks)
    optimizer = OPTIMIZERS[name](p4.parameter_groups(holder)[1:])
    scheduler = p4.MergeScheduler(holder, optimizer, every=3, optimizer_state=option)
    for _ in range(3):
        optimizer.zero_grad()
        (holder.weight * torch.randn(shape)).square().sum().backward()
        optimizer.step()
        before = copy.deepcopy(next(iter(optimizer.state.values())))
        scheduler.step()
    (site,) = p4.sites(holder)
    assert scheduler.merged > 0
    return site.perturbation.get_parameter("b"), before, dict(next(iter(optimizer.state.values())))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("option", ["reset_directions", "restart", "transport"])
def test_redrawn_coordinates_lose_momentum_and_share_the_mean_size(name: str, option: Any) -> None:
    b, before, after = blocks_after_a_merge(name, option)
    assert before.keys() == after.keys()
    for key, entry in after.items():
        if key in SIZES[name]:
            mean = before[key].mean()
            torch.testing.assert_close(entry, mean.expand_as(entry))
            assert float(mean) > 0
        elif key == "ax":
            assert torch.equal(entry, b)
        elif isinstance(entry, Tensor) and entry.shape == b.shape:
            assert not entry.any(), key
        else:
            assert entry is None or torch.equal(torch.as_tensor(entry), torch.as_tensor(before[key])), key


def test_redrawn_coordinates_of_a_stack_have_a_mean_each() -> None:
    _, before, after = blocks_after_a_merge("Adam", "restart", (3, 4, 2))
    torch.testing.assert_close(after["exp_avg_sq"], before["exp_avg_sq"].mean((-2, -1), keepdim=True).expand(3, 4, 2))


@pytest.mark.parametrize("name", ["Adam", "SGD-momentum"])
def test_redrawn_coordinates_are_kept_or_reset_where_asked_for(name: str) -> None:
    _, before, after = blocks_after_a_merge(name, "keep")
    assert same(before, after)
    _, _, after = blocks_after_a_merge(name, "reset")
    assert not any(torch.as_tensor(entry).any() for entry in after.values())


def test_steps_after_a_redraw_are_no_larger_than_before() -> None:
    """A reset would make the first one a step of full size."""
    parameter, gradient = nn.Parameter(torch.zeros(64)), torch.randn(64)
    optimizer = torch.optim.Adam([parameter], lr=1e-2)
    for _ in range(100):
        parameter.grad = gradient + 100 * torch.randn(64)
        optimizer.step()
    memory.redraw(optimizer, parameter)
    before, parameter.grad = parameter.detach().clone(), gradient
    optimizer.step()
    assert float((parameter.detach() - before).abs().max()) < 1e-3
