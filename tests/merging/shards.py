"""A small model with perturbations of several kinds, trained whole or in the shards of FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import p4torch as p4

WIDTH, BATCH = 12, 24
#: Of each layer: the property and its options. One width is no multiple of the number of processes.
LAYERS: list[tuple[type[p4.Perturbation], dict[str, Any], int]] = [
    (p4.Orthogonal, {"rank": 2}, WIDTH),
    (p4.Orthogonal, {"block": 5}, WIDTH),
    (p4.Invertible, {"rank": 2}, WIDTH),
    (p4.LowRankUpdate, {"rank": 2}, 7),
    (p4.FixedSingularValues, {"block": 4}, WIDTH),
]


def build(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The model, the same in all processes."""
    torch.manual_seed(seed)
    model, width = nn.Sequential(), WIDTH
    for property, options, outputs in LAYERS:
        layer = nn.Linear(width, outputs, dtype=dtype)
        if property is p4.Orthogonal:
            nn.init.orthogonal_(layer.weight)
        model.append(p4.perturb(layer, "weight", property, **options))
        model.append(nn.Tanh())
        width = outputs
    return model


def batch(step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
    """The part of a process of the points of one step, and what they are to become."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, WIDTH, generator=generator).chunk(ranks)[rank]
    return x, x.flip(-1).tanh() * 0.5


def optimizer_of(model: nn.Module, kind: str) -> Optimizer:
    groups = p4.parameter_groups(model)
    return torch.optim.SGD(groups, lr=0.02, momentum=0.5) if kind == "sgd" else torch.optim.Adam(groups, lr=1e-3)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: p4.MergeScheduler,
    steps: range,
    rank: int = 0,
    ranks: int = 1,
    before: Callable[[int], None] = lambda step: None,
) -> list[p4.MergeReport]:
    reports = []
    for step in steps:
        optimizer.zero_grad()
        x, y = batch(step, rank, ranks)
        (model(x) - y).square().mean().backward()
        optimizer.step()
        before(step)
        reports += scheduler.step()
    return reports


def refuse_once(model: nn.Module, name: str, attempt: int) -> None:
    """One merge of one site is refused: that after so many attempts."""
    perturbation: Any = next(site.perturbation for site in p4.sites(model) if site.name == name)
    propose = perturbation.propose

    def refusing(base: Tensor) -> p4.Proposal:
        proposal = propose(base)
        if int(perturbation.attempts) == attempt:
            proposal.vetoes.append(p4.Veto("refused once", torch.tensor(True)))
        return proposal

    perturbation.propose = refusing


def state_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All that is trained, tracked and remembered, whole, by name."""
    from p4torch.parametrize.sharding import whole

    names = {id(value): name for name, value in model.named_parameters()}
    state = {name: whole(value).detach().clone() for name, value in model.state_dict().items()}
    for value, entries in optimizer.state.items():
        for key, entry in entries.items():
            if isinstance(entry, Tensor):
                state[f"{key} of {names[id(value)]}"] = whole(entry).clone()
    return state


def poison(model: nn.Module, site: str, bias: str) -> None:
    """A number of a perturbation, and one of a bias, that is not finite: in the process that holds it."""
    from p4torch.parametrize.sharding import is_sharded, local, rows

    b = next(found.perturbation.u for found in p4.sites(model) if found.name == site)
    for value in (b, dict(model.named_parameters())[bias]):
        if not is_sharded(value) or rows(value)[0] == 0:
            local(value.detach())[0] = torch.nan


class Collectives(TorchDispatchMode):
    """Counts collectives, and the bytes of their longest tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [value for value in tree_leaves(args) if isinstance(value, Tensor)]
            self.sizes.append(max(value.numel() * value.element_size() for value in tensors))
        return func(*args, **(kwargs or {}))
