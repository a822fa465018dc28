"""Names of sites are those of the plain model, whatever is wrapped around it or around its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.parametrize.test_sites import assert_unchanged, snapshot
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import p4torch as p4


def perturbed() -> nn.Sequential:
    """A model with a part that is called as wrappers call what they wrap."""
    torch.manual_seed(0)
    inner = nn.ModuleDict({"module": nn.Linear(4, 4)})
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    model.add_module("inner", inner)
    inner.forward = lambda x: inner["module"](x)  # type: ignore[method-assign]
    for name in ("0.weight", "1.0.weight", "inner.module.weight"):
        p4.perturb(model, name, p4.Orthogonal, rank=1)
    return model


def of_fabric(model: nn.Module) -> nn.Module:
    fabric = pytest.importorskip("lightning_fabric")
    return fabric.Fabric(accelerator="cpu", devices=1).setup(model)


def checkpointed(model: nn.Module) -> nn.Module:
    """Activation checkpointing of two layers."""
    model[0], model[1][0] = checkpoint_wrapper(model[0]), checkpoint_wrapper(model[1][0])  # type: ignore[index,operator]
    return model


def compiled_layer(model: nn.Module) -> nn.Module:
    model[1] = torch.compile(model[1], backend="eager")  # type: ignore[index,operator]
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "compiled layer": compiled_layer,
    "data parallel": nn.DataParallel,
    "activation checkpointing": checkpointed,
    "fabric": of_fabric,
    "compiled fabric": lambda model: of_fabric(torch.compile(model, backend="eager")),  # type: ignore[arg-type]
    "data parallel inside": lambda model: nn.DataParallel(checkpointed(model)),
}


def trained(
    model: nn.Module, root: nn.Module, steps: int = 7, state: dict[str, object] | None = None
) -> p4.MergeScheduler:
    """Some steps of the plain `model` with merges of what `root` holds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = p4.MergeScheduler(root, optimizer, every=3, seed=5)
    if state is not None:
        scheduler.load_state_dict(state)  # type: ignore[arg-type]
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return scheduler


def directions(root: nn.Module) -> list[Tensor]:
    return [site.perturbation.v.detach().clone() for site in p4.sites(root)]  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("name", WRAPPERS)
def test_names_directions_and_states_do_not_depend_on_wrapping(name: str) -> None:
    plain, model = perturbed(), perturbed()
    wrapped = WRAPPERS[name](model)
    names = ["0.weight", "1.0.weight", "inner.module.weight"]
    assert [site.name for site in p4.sites(wrapped)] == names
    scheduler, other = trained(plain, plain), trained(model, wrapped)
    assert all(torch.equal(one, two) for one, two in zip(directions(plain), directions(wrapped), strict=True))
    other.load_state_dict(scheduler.state_dict())  # of the plain model, and the other way around
    scheduler.load_state_dict(other.state_dict())


@pytest.mark.parametrize("first", ["plain", "wrapped"])
def test_checkpointing_may_be_toggled_between_save_and_load(first: str) -> None:
    """torch leaves this wrapper out of state dictionaries."""
    saved, loaded = perturbed(), perturbed()
    wrapped = checkpointed(saved if first == "wrapped" else loaded)
    scheduler = trained(saved, saved)
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert_unchanged(loaded, snapshot(saved))
    trained(saved, saved, state=scheduler.state_dict())
    trained(loaded, loaded, state=scheduler.state_dict())
    assert_unchanged(loaded, snapshot(saved))
    assert p4.finalize(wrapped) is wrapped and list(p4.sites(wrapped)) == []


def test_a_wrapped_model_is_checked_before_anything_is_written() -> None:
    model, other = checkpointed(perturbed()), nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    p4.MergeScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for layer in (other[0], other[1][0]):  # type: ignore[index]
        p4.perturb(layer, "weight", p4.Orthogonal, rank=1)
    state = other.state_dict()
    plain = {key: value for key, value in state.items() if key.startswith("1.")}
    plain["0.weight"], plain["0.bias"] = torch.eye(4), torch.zeros(4)
    model.load_state_dict(plain, strict=False)  # a plain tensor for a layer inside of a wrapper
    assert torch.equal(model[0].weight, torch.eye(4))  # type: ignore[index]
    before = snapshot(model)
    p4.finalize(other[1])
    p4.perturb(other[1], "0.weight", p4.Orthogonal, rank=2)
    with pytest.raises(p4.CheckpointError, match=r"`1.0.weight` .* must be of Orthogonal\(rank=1\), got one of"):
        model.load_state_dict(other.state_dict(), strict=False)
    assert_unchanged(model, before)
