"""Sites that are alike merge as one stack of matrices, and as they would one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.constructors import PERTURBATIONS, Row
from torch import nn

import p4torch as p4
from p4torch.merging.joint import groups
from p4torch.merging.stacks import merge_stack, stacks

#: float64 rounding in matrices of 6, some of which are inverted, relative to the largest entry.
TOLERANCE = 1e-10

SITES = 3


class Holder(nn.Module):
    """A tensor, and no more."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value)


def _model(row: Row, sites: int = SITES, seed: int = 0) -> nn.ModuleList:
    """Sites of the same property, each with a base and a B of its own."""
    generator = torch.Generator().manual_seed(seed)
    sample, shape = row.options.get("sample"), row.options.get("shape", (6, 6))
    model = nn.ModuleList()
    for _ in range(sites):
        base = (
            sample(generator) if sample else _of_positive_determinant(torch.randn(shape, generator=generator).double())
        )
        holder = Holder(base)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.append(p4.perturb(holder, "weight", row.factory))
    _move(model, generator)
    return model


def _of_positive_determinant(base: torch.Tensor) -> torch.Tensor:
    """Square matrices with their first rows turned around, where needed."""
    if base.dim() > 1 and base.shape[-2] == base.shape[-1]:
        base[..., 0, :] *= torch.linalg.det(base).sign()[..., None]
    return base


@torch.no_grad()
def _move(model: nn.Module, generator: torch.Generator) -> None:
    for site in p4.sites(model):
        for name, value in site.perturbation.training_parameters():
            if name not in site.perturbation.directions:
                value.add_(0.05 * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value))


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.dtype != torch.uint8}


def _alike(row: Row) -> bool:
    model = _model(row, 1)
    return next(p4.sites(model)).perturbation.stackable


STACKABLE = [name for name, row in PERTURBATIONS.items() if _alike(row)]


@pytest.mark.parametrize("name", STACKABLE)
def test_a_stack_merges_as_its_sites_do_one_by_one(name: str) -> None:
    together = _model(PERTURBATIONS[name])
    alone = copy.deepcopy(together)
    generator = torch.Generator().manual_seed(1)
    for turn in range(3):
        assert len(stacks(groups(together))) == 1
        reports = merge_stack(list(p4.sites(together)), seed=3)
        expected = [site.merge(seed=3) for site in p4.sites(alone)]
        assert reports == expected, turn
        for key, value in _state(alone).items():
            got = _state(together)[key]
            scale = 1 + float(value.abs().max()) if value.numel() else 1.0
            torch.testing.assert_close(got, value, rtol=0, atol=TOLERANCE * scale, msg=f"{key}, merge {turn}")
        state = generator.get_state()
        for model in (together, alone):
            generator.set_state(state)
            _move(model, generator)
