"""Sites that are alike merge as one stack of matrices, and as they would one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable

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


def model_of(row: Row, sites: int = SITES, seed: int = 0) -> nn.ModuleList:
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
    model = model_of(row, 1)
    return next(p4.sites(model)).perturbation.stackable


STACKABLE = [name for name, row in PERTURBATIONS.items() if _alike(row)]


@pytest.mark.parametrize("name", STACKABLE)
def test_a_stack_merges_as_its_sites_do_one_by_one(name: str) -> None:
    together = model_of(PERTURBATIONS[name])
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


def test_a_schedule_ends_with_the_same_numbers_as_one_that_merges_site_by_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sites of two sizes, one of them refused at times, a bias beside them, and Adam."""

    def train() -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 4), nn.Linear(4, 4)).double()
        bounds = p4.DeterminantBounds(change=(-0.3, 0.3))
        for index in (0, 1, 2, 4):
            p4.perturb(model[index], "weight", p4.Invertible, rank=1, bounds=bounds)
        optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], 1e-2)
        scheduler = p4.MergeScheduler(model, optimizer, 5, seed=2)
        for _ in range(60):
            (model(torch.randn(8, 6).double()) - 1).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        assert 0 < scheduler.skipped < scheduler.merged
        return _state(model)

    together = train()
    monkeypatch.setattr("p4torch.merging.batch.merge_stack", lambda sites, seed: None)
    for name, value in train().items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize("sites", [1, SITES])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_b_that_is_not_finite_leaves_all_as_it_was(name: str, sites: int) -> None:
    row = PERTURBATIONS[name]
    model = model_of(row, sites)
    members = list(p4.sites(model))
    if sites > 1 and not members[0].perturbation.stackable:
        return
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        spoilt = dict(members[-1].perturbation.training_parameters())
        value = next(value for name, value in spoilt.items() if name not in members[-1].perturbation.directions)
        value.view(-1)[-1] = torch.nan
    assert merge_stack(members, seed=0) is None
    value_name = next(key for key, other in model.state_dict().items() if not torch.equal(other, before[key]))
    for key, other in model.state_dict().items():
        assert key == value_name or torch.equal(other, before[key]), key


@pytest.mark.parametrize("what", ["nonfinite", "refused"])
def test_where_something_is_not_as_usual_nothing_is_done(what: str) -> None:
    model = nn.ModuleList(p4.perturb(nn.Linear(3, 3), "weight", p4.Invertible, rank=1) for _ in range(2))
    sites = list(p4.sites(model))
    with torch.no_grad():
        if what == "nonfinite":
            sites[1].perturbation.u[0, 0] = torch.nan
        else:  # W = A - u vᵀ is singular
            perturbation = sites[1].perturbation
            perturbation.v.copy_(sites[1].base.mT[:, :1])
            perturbation.u.zero_()[0, 0] = -1 / float(perturbation.gain)
    before = copy.deepcopy(model.state_dict())
    assert merge_stack(sites, seed=0) is None
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    reports = p4.merge(model)
    assert [report.skipped for report in reports] == [0, 1]


@pytest.mark.parametrize(
    "second",
    [
        lambda layer: p4.perturb(layer, "weight", p4.Invertible, rank=2),
        lambda layer: p4.perturb(layer, "weight", p4.Invertible, rank=1, form="exponential"),
        lambda layer: p4.perturb(layer, "weight", p4.Invertible, rank=1, bounds="paper"),
        lambda layer: p4.perturb(layer.double(), "weight", p4.Invertible, rank=1),
        lambda layer: p4.perturb(layer, "weight", p4.Orthogonal, rank=1),
    ],
)
def test_sites_that_are_not_alike_merge_alone(second: Callable[[nn.Linear], nn.Module]) -> None:
    first = p4.perturb(nn.Linear(3, 3), "weight", p4.Invertible, rank=1)
    layer = nn.Linear(3, 3)
    nn.init.orthogonal_(layer.weight)
    assert len(stacks(groups(nn.ModuleList([first, second(layer)])))) == 2


def test_sites_with_other_numbers_of_merges_merge_alone() -> None:
    model = nn.ModuleList(p4.perturb(nn.Linear(3, 3), "weight", p4.Invertible, rank=1) for _ in range(3))
    p4.merge(model[1])
    assert [len(stack) for stack in stacks(groups(model))] == [2, 1]
    state = copy.deepcopy(model.state_dict())
    fresh = nn.ModuleList(p4.perturb(nn.Linear(3, 3), "weight", p4.Invertible, rank=1) for _ in range(3))
    assert [site.perturbation.merge_index for site in p4.sites(fresh)] == [0, 0, 0]
    fresh.load_state_dict(state, assign=True)
    assert [site.perturbation.merge_index for site in p4.sites(fresh)] == [0, 1, 0]
    assert [site.perturbation.merge_index for site in p4.sites(copy.deepcopy(fresh))] == [0, 1, 0]


@pytest.mark.parametrize("sites", [1, 2])
def test_bases_of_another_dtype_than_b_are_refused(sites: int) -> None:
    model = nn.ModuleList(p4.perturb(nn.Linear(3, 3), "weight", p4.Invertible, rank=1) for _ in range(sites))
    for site in p4.sites(model):
        for _, value in site.perturbation.own_parameters():
            value.data = value.data.double()
    with pytest.raises(p4.ArgumentError, match=r"`base` must be torch.float64 on cpu, as u is, got torch.float32"):
        p4.merge(model)
