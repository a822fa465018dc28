"""Sites that merge together: all or none, under schedules, in larger models, and after a resume."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from tests.layers import hand_over
from torch import Tensor, nn

import p4torch as p4
from p4torch.merging.joint import groups

#: Of float64 sums of a few numbers of size 1.
ROUNDING = 1e-12


class FixedTotal(p4.JointMerge):
    """S = {networks whose weights have the sum of squares that they started with}: layers trade shares of it."""

    total: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("total", self.squares([site.base for site in self.sites()]))

    @staticmethod
    def squares(weights: Sequence[Tensor]) -> Tensor:
        return torch.stack([weight.detach().double().square().sum() for weight in weights]).sum()

    def propose(self, sites: Sequence[p4.Site]) -> list[p4.Proposal]:
        candidates = [proposal.base for proposal in super().propose(sites) if proposal.base is not None]
        factor = (self.total / self.squares(candidates)).sqrt()
        return [p4.Proposal(candidate * factor) for candidate in candidates]


class Refusing(p4.JointMerge):
    """Vetoes everything, softly or not."""

    soft = False

    def vetoes(self, sites: Sequence[p4.Site], proposals: Sequence[p4.Proposal]) -> list[p4.Veto]:
        return [p4.Veto("not today", torch.tensor(True), soft=self.soft)]


def chain(property: type[p4.Perturbation] = p4.LowRankUpdate, **options: object) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for layer in model[::2]:
        p4.perturb(layer, "weight", property, **options)
    return model


def move(model: nn.Module, size: float = 0.1) -> None:
    with torch.no_grad():
        for site in p4.sites(model):
            for value in site.perturbation.own_parameters():
                value[1].add_(size * torch.randn_like(value[1]))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    names = ("attempts", "skips")
    return {name: value.clone() for name, value in model.state_dict().items() if not name.endswith(names)}


def test_a_property_of_ones_own_is_kept() -> None:
    network = FixedTotal(chain(rank=2))
    norms = [float(site.base.norm()) for site in network.sites()]
    for _ in range(5):
        move(network)
        reports = p4.merge(network)
        assert [report.ok for report in reports] == [True] * 3
        assert [report.site for report in reports] == ["model.0.weight", "model.2.weight", "model.4.weight"]
        found = FixedTotal.squares([site.base for site in network.sites()])
        torch.testing.assert_close(found, network.total, rtol=ROUNDING, atol=0)
    assert any(abs(float(site.base.norm()) - norm) > 0.01 for site, norm in zip(network.sites(), norms, strict=True))


def test_without_a_property_of_its_own_a_network_only_merges_together() -> None:
    network, x = p4.JointMerge(chain()), torch.randn(7, 4, dtype=torch.float64)
    move(network)
    before = network(x)
    assert all(report.ok for report in p4.merge(network))
    torch.testing.assert_close(network(x), before, rtol=0, atol=ROUNDING)


def test_one_that_refuses_refuses_for_all() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).double()
    for layer in model:
        nn.init.orthogonal_(layer.weight)
        p4.perturb(layer, "weight", p4.Invertible, rank=1, scale=1.0)
    network = p4.JointMerge(model)
    move(network)
    middle = network.sites()[1]
    with torch.no_grad():  # det R_B(A) = 0
        v = middle.perturbation.v
        middle.perturbation.u.copy_(-(middle.base @ v) / v.square().sum())
    before = snapshot(network)
    reports = p4.merge(network, force=True)
    assert [report.merged for report in reports] == [0, 0, 0]
    assert "singular" in (reports[1].reason or "")
    for report in (reports[0], reports[2]):
        assert "merged together or not at all: model.1.weight: " in (report.reason or "")
    after = snapshot(network)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [int(site.perturbation.skips) for site in network.sites()] == [1, 1, 1]


def test_what_is_not_finite_is_reset_and_nothing_else_happens() -> None:
    network = p4.JointMerge(chain())
    move(network)
    first, second, third = network.sites()
    kept = [first.perturbation.u.clone(), third.base.clone()]
    with torch.no_grad():
        second.perturbation.u.fill_(torch.nan)
    reports = p4.merge(network)
    assert [report.merged for report in reports] == [0, 0, 0] and reports[1].nonfinite == ("u",)
    assert not second.perturbation.u.any()
    assert torch.equal(first.perturbation.u, kept[0]) and torch.equal(third.base, kept[1])


@pytest.mark.parametrize("soft", [False, True])
def test_a_network_may_refuse(soft: bool) -> None:
    network = Refusing(chain())
    network.soft = soft
    move(network)
    assert all(report.reason == "merged together or not at all: not today" for report in p4.merge(network))
    assert all(report.ok is soft for report in p4.merge(network, force=True))


def test_groups_of_a_larger_model() -> None:
    alone = p4.perturb(nn.Linear(3, 3).double(), "weight", p4.LowRankUpdate)
    model = nn.Sequential(p4.JointMerge(chain()), alone)
    found = groups(model)
    assert [len(group.sites) for group in found] == [3, 1]
    assert isinstance(found[0].network, p4.JointMerge) and found[1].network is None
    with pytest.raises(p4.ArgumentError, match="inside of each other"):
        groups(p4.JointMerge(nn.Sequential(p4.JointMerge(chain()))))
    with pytest.raises(p4.ArgumentError, match=r"`model` must be an nn.Module, got int"):
        p4.JointMerge(3)  # type: ignore[arg-type]


def training(every: int = 4, stagger: bool = True) -> tuple[nn.Module, torch.optim.Optimizer, p4.MergeScheduler]:
    torch.manual_seed(0)
    alone = p4.perturb(nn.Linear(3, 3).double(), "weight", p4.LowRankUpdate)
    model = nn.Sequential(FixedTotal(chain(rank=2)), alone)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=1e-2)
    return model, optimizer, p4.MergeScheduler(model, optimizer, every=every, stagger=stagger)


def walk(parts: tuple[nn.Module, torch.optim.Optimizer, p4.MergeScheduler], start: int, stop: int) -> list[list[str]]:
    model, optimizer, scheduler = parts
    merged = []
    for step in range(start, stop):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        merged.append([report.site for report in scheduler.step()])
    return merged


def test_a_staggered_schedule_keeps_the_network_together() -> None:
    together, single = ["0.model.0.weight", "0.model.2.weight", "0.model.4.weight"], ["1.weight"]
    assert walk(training(), 0, 8) == [[], single, [], together, [], single, [], together]


def test_a_resume_is_exact() -> None:
    straight, resumed = training(), training()
    walk(straight, 0, 6)
    hand_over(straight, resumed)
    walk(straight, 6, 17)
    walk(resumed, 6, 17)
    for name, value in straight[0].state_dict().items():
        assert torch.equal(resumed[0].state_dict()[name], value), name


def test_copies_are_apart() -> None:
    network = FixedTotal(chain())
    reference = copy.deepcopy(network)
    before = snapshot(network)
    move(reference)
    p4.merge(reference)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(network).items())


def test_finalize_takes_the_network_off() -> None:
    inner = chain()
    model, x = nn.Sequential(FixedTotal(inner), nn.Tanh()), torch.randn(5, 4, dtype=torch.float64)
    move(model)
    before = model(x)
    plain = p4.finalize(model)
    assert plain is model and model[0] is inner and type(inner[0]) is nn.Linear
    torch.testing.assert_close(model(x), before, rtol=0, atol=ROUNDING)
    assert p4.finalize(FixedTotal(chain()))[0].weight.requires_grad  # type: ignore[index]
