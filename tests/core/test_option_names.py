"""Options that a property does not have, and ranks that it cannot have, are refused by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import p4torch as p4
from p4torch.core.options import option_names
from p4torch.errors import ArgumentError

PROPERTIES = [getattr(p4, name) for name in p4.properties.__all__]


def put(property: Any, **options: Any) -> nn.Module:
    return p4.perturb(nn.Linear(4, 4), "weight", property, **options)


@pytest.mark.parametrize("property", PROPERTIES, ids=lambda kind: kind.__name__)
def test_unknown_options_are_refused_with_a_list_of_those_that_there_are(property: Any) -> None:
    known = option_names(property)
    kind = {"kind": "symmetric"} if property is p4.LinearSubspace else {}
    rank = {"rank": 2} if property is p4.FixedRank else {}
    listed = f"those of {property.__name__} \\({', '.join(known)}\\), got rnak"
    layer = nn.Linear(4, 4, dtype=torch.complex64 if "Unitary" in property.__name__ else None)
    with pytest.raises(ArgumentError, match=f"`options` must be {listed}"):
        p4.perturb(layer, "weight", property, rnak=2, **kind, **rank)
    assert not any(p4.sites(layer))


def test_functions_are_asked_for_their_options() -> None:
    def own(base: torch.Tensor, rank: int = 1) -> p4.Perturbation:
        return p4.LowRankUpdate(base, rank=rank)

    assert option_names(own) == ["rank"] and option_names(partial(p4.Nonnegative, floor=0.1)) == ["floor"]
    assert option_names(lambda matrix: p4.LowRankUpdate(matrix)) == []
    with pytest.raises(ArgumentError, match=r"`options` must be those of own \(rank\), got depth, floor"):
        put(own, rank=2, depth=1, floor=0)
    with pytest.raises(ArgumentError, match=r"it has none"):
        put(lambda matrix: p4.LowRankUpdate(matrix), rank=2)


def test_what_a_property_keeps_for_itself_is_no_option() -> None:
    with pytest.raises(ArgumentError, match=r"`options` must be those of LowRankUpdate \(rank, scale, .*got side"):
        put(p4.LowRankUpdate, side="left")


def test_other_type_errors_stay() -> None:
    def broken(base: torch.Tensor, rank: int = 1) -> p4.Perturbation:
        raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        put(broken, rank=2)
    with pytest.raises(TypeError, match="`through` is now `loss_on`"):
        put(p4.Invertible, through="inverse")


def test_networks_and_flows_say_it_too() -> None:
    with pytest.raises(ArgumentError, match=r"`options` must be those of SpectralBound .*got rnak"):
        p4.LipschitzNetwork(nn.Sequential(nn.Linear(3, 3)), bound=1.0, rnak=2)
    with pytest.raises(ArgumentError, match=r"`options` must be those of Invertible .*got rnak"):
        p4.flows.InvertibleLinear(4, rnak=2)


#: Properties with directions V, of the long side of a matrix 4 x 6 or a matrix 4 x 4, and the rank that they have.
RANKED: dict[str, tuple[Any, tuple[int, int], int]] = {
    "update": (p4.LowRankUpdate, (4, 6), 6),
    "update, tall": (p4.LowRankUpdate, (6, 4), 4),
    "orthogonal": (p4.Orthogonal, (4, 4), 4),
    "stiefel": (p4.Orthogonal, (4, 6), 6),
    "stiefel, tall": (p4.Orthogonal, (6, 4), 6),
    "invertible": (p4.Invertible, (4, 4), 4),
    "exponential": (partial(p4.Invertible, form="exponential"), (4, 4), 4),
    "unit determinant": (p4.UnitDeterminant, (4, 4), 3),
    "spectrum": (p4.FixedSpectrum, (4, 4), 4),
    "symplectic": (p4.Symplectic, (4, 4), 4),
    "positive definite": (p4.PositiveDefinite, (4, 4), 4),
    "stochastic": (partial(p4.Stochastic, floor=0.1), (4, 6), 6),
    "bound": (p4.SpectralBound, (4, 6), 6),
    "fixed rank": (p4.FixedRank, (4, 6), 4),
    "symmetric": (partial(p4.LinearSubspace, kind="symmetric"), (4, 4), 4),
    "lower": (partial(p4.LinearSubspace, kind="lower"), (4, 6), 6),
    "group": (partial(p4.LinearSubspace, group=torch.eye(4)[None]), (4, 4), 4),
}


@pytest.mark.parametrize("name", RANKED)
def test_ranks_above_the_number_of_coordinates_are_refused(name: str) -> None:
    property, shape, most = RANKED[name]
    base = torch.eye(*shape, dtype=torch.float64)
    assert property(base, rank=most).rank == most
    with pytest.raises(ArgumentError, match=f"`rank` must be .*(at most|to|less than n =) .*, got {most + 1}"):
        property(base, rank=most + 1)


def test_a_default_rank_fits_the_smallest_matrix() -> None:
    for property in (partial(p4.Stochastic, doubly=True), p4.LowRankUpdate, p4.SpectralBound):
        property(torch.ones(1, 1))


def test_sites_and_schedulers_are_readable() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    p4.perturb(model, "0.weight", p4.LowRankUpdate, rank=2)
    (site,) = p4.sites(model)
    assert repr(site) == "Site('0.weight', (4, 4), LowRankUpdate(rank=2))"
    scheduler = p4.MergeScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert repr(scheduler) == "MergeScheduler(sites=1, every=by site, steps=0, merged=0, skipped=0)"
    scheduler = p4.MergeScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1), every=7)
    assert repr(scheduler).startswith("MergeScheduler(sites=1, every=7, ")
