"""Options and points as numpy gives them: its numbers are taken, its arrays refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tests.constructors import PERTURBATIONS
from torch import Tensor, nn

import p4torch as p4
from p4torch._options import check_indices, check_integer, check_number
from p4torch.errors import ArgumentError
from p4torch.flows import (
    AffineCoupling,
    BentIdentity,
    Bijection,
    Chain,
    Flow,
    Inverse,
    InvertibleLinear,
    InvertibleMLP,
    NormalAndUniform,
    Partial,
    SplineCoupling,
    StandardNormal,
    Swap,
    VolumePreserving,
    path_loss,
)
from p4torch.testing import _cases

N, F, D = np.int64, np.float32, np.float64
PAIR = np.ones(2)


def eye(**options: Any) -> nn.Module:
    layer = nn.Linear(4, 4)
    nn.init.eye_(layer.weight)
    return p4.perturb(layer, "weight", options.pop("property"), **options)


PROPERTIES: dict[str, dict[str, Any]] = {
    "orthogonal": {"property": p4.Orthogonal, "rank": N(2), "scale": F(0.5), "train_directions": np.bool_(True)},
    "invertible": {
        "property": p4.Invertible, "rank": np.uint8(2), "max_update_norm": D(1),
        "bounds": p4.DeterminantBounds((F(-3), D(3)), (F(-3), F(3)), N(3), F(0.1)),
    },
    "unit determinant": {"property": p4.UnitDeterminant, "rank": np.int32(2)},
    "blocks": {"property": p4.Orthogonal, "block": N(2), "scale": F(0.5)},
    "exponential blocks": {"property": p4.Invertible, "form": "exponential", "block": np.int32(4)},
    "symplectic blocks": {"property": p4.Symplectic, "block": N(2)},
    "update": {"property": p4.LowRankUpdate, "rank": N(2), "scale": D(0.1)},
    "bound": {"property": p4.SpectralBound, "bound": D(2), "rank": N(1)},
    "bound in float32": {"property": p4.SpectralBound, "bound": F(2)},
    "fixed rank": {"property": p4.FixedRank, "rank": N(2)},
    "nonnegative": {"property": p4.Nonnegative, "floor": F(0.1)},
    "stochastic": {"property": p4.Stochastic, "doubly": True, "rank": N(2), "floor": F(0.1), "sweeps": N(9)},
    "positive definite": {"property": p4.PositiveDefinite, "rank": N(2), "floor": F(0.1)},
    "symplectic": {"property": p4.Symplectic, "rank": N(2), "scale": F(0.5)},
    "spectrum": {"property": p4.FixedSpectrum, "rank": N(2)},
    "symmetric": {"property": p4.LinearSubspace, "kind": "symmetric", "rank": N(2)},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::p4torch.ProjectionWarning")
@pytest.mark.parametrize("name", PROPERTIES)
def test_numbers_of_numpy_are_taken(name: str) -> None:
    layer = eye(**PROPERTIES[name])
    loss = layer(torch.randn(3, 4)).square().sum() + p4.penalty(layer)
    loss.backward()
    (site,) = p4.sites(layer)
    assert not any(isinstance(value, np.generic) for value in vars(site.perturbation).values())
    bounds = getattr(site.perturbation, "bounds", p4.DeterminantBounds())
    assert not any(isinstance(value, np.generic) for value in (*(bounds.change or ()), *vars(bounds).values()))
    p4.merge(layer)
    p4.finalize(layer)


def test_a_schedule_by_numbers_of_numpy() -> None:
    layer = eye(property=p4.LowRankUpdate)
    options = {"correct_every": N(5), "refresh_every": N(3), "rewarm": N(2), "seed": N(3)}
    scheduler = p4.MergeScheduler(layer, torch.optim.Adam(layer.parameters()), every=N(5), **options)
    assert not any(isinstance(value, np.generic) for value in scheduler.state_dict().values())
    p4.LipschitzNetwork(nn.Sequential(nn.Linear(3, 3)), bound=F(20), rank=N(2))


FLOWS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: InvertibleMLP(N(2), N(4), rank=N(1)),
    "linear": lambda: InvertibleLinear(N(2), rank=N(1)),
    "coupling": lambda: AffineCoupling(N(4), hidden=(N(5), N(5))),
    "coupling, array": lambda: AffineCoupling(4, hidden=np.array([5, 5])),
    "spline": lambda: SplineCoupling(N(4), np.array([0, 2]), np.array([1]), hidden=np.array([4]), bins=N(4)),
    "swap": lambda: Swap(N(4)),
    "partial": lambda: Partial(N(4), np.arange(3), Swap(3)),
    "angles": lambda: NormalAndUniform(N(3), np.array([1])),
    "normal": lambda: StandardNormal(N(3)),
    "samples": lambda: Flow(BentIdentity(), StandardNormal(3)).sample(N(3)),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_by_numbers_of_numpy(name: str) -> None:
    FLOWS[name]()


WRONG: dict[str, tuple[str, Callable[[], Any]]] = {
    "rank": ("rank", partial(eye, property=p4.Orthogonal, rank=np.array([2]))),
    "rank, no dimension": ("rank", partial(eye, property=p4.Orthogonal, rank=np.array(2))),
    "rank, truth": ("rank", partial(eye, property=p4.Orthogonal, rank=np.bool_(True))),
    "scale": ("scale", partial(eye, property=p4.Orthogonal, scale=PAIR)),
    "scale, nan": ("scale", partial(eye, property=p4.Orthogonal, scale=D("nan"))),
    "block": ("block", partial(eye, property=p4.Orthogonal, block=np.array([2]))),
    "block, truth": ("block", partial(eye, property=p4.Orthogonal, block=np.bool_(True))),
    "side": ("side", partial(eye, property=p4.Orthogonal, block=2, side=PAIR)),
    "loss_on blocks": ("loss_on", partial(eye, property=p4.Invertible, block=2, loss_on=PAIR)),
    "max_update_norm of blocks": (
        "max_update_norm",
        partial(eye, property=p4.Invertible, block=2, max_update_norm=PAIR),
    ),
    "directions": ("directions", partial(eye, property=p4.Orthogonal, directions=PAIR)),
    "view": ("view", partial(eye, property=p4.Orthogonal, view=PAIR)),
    "form": ("form", partial(eye, property=p4.Invertible, form=PAIR)),
    "loss_on": ("loss_on", partial(eye, property=p4.Invertible, loss_on=PAIR)),
    "bounds": ("bounds", partial(eye, property=p4.Invertible, bounds=PAIR)),
    "change": ("change", partial(p4.DeterminantBounds, change=PAIR)),
    "change, arrays": ("change", partial(p4.DeterminantBounds, change=(-PAIR, PAIR))),
    "total": ("total", partial(p4.DeterminantBounds, total=PAIR)),
    "force_every": ("force_every", partial(p4.DeterminantBounds, force_every=PAIR)),
    "penalty_weight": ("penalty_weight", partial(p4.DeterminantBounds, penalty_weight=PAIR)),
    "max_update_norm": ("max_update_norm", partial(eye, property=p4.Invertible, max_update_norm=PAIR)),
    "bound": ("bound", partial(eye, property=p4.SpectralBound, bound=PAIR)),
    "method": ("method", partial(eye, property=p4.SpectralBound, method=PAIR)),
    "kind": ("kind", partial(eye, property=p4.LinearSubspace, kind=PAIR)),
    "mask": ("mask", partial(eye, property=p4.LinearSubspace, mask=np.eye(4) > 0)),
    "group": ("group", partial(eye, property=p4.LinearSubspace, group=np.eye(4)[None])),
    "input": ("input", lambda: eye(property=p4.Orthogonal)(np.ones((3, 4)))),
    "init": ("init", lambda: InvertibleLinear(2, init=np.eye(2))),
    "init of an mlp": ("init", lambda: InvertibleMLP(2, 3, init=np.eye(2))),
    "features": ("features", lambda: AffineCoupling(np.array([4]))),
    "features of a spline": ("features", lambda: SplineCoupling(1, [0])),
    "hidden": ("hidden", lambda: AffineCoupling(4, hidden=3)),
    "moved": ("moved", lambda: SplineCoupling(4, 2)),
    "moved twice": ("moved", lambda: SplineCoupling(4, np.array([2, 2]))),
    "chosen": ("chosen", lambda: Partial(4, np.array([0.0, 1.0]), Swap(2))),
    "count": ("count", lambda: Flow(BentIdentity(), StandardNormal(3)).sample(np.array([3]))),
    "optimizer_state": ("optimizer_state", lambda: schedule(optimizer_state=PAIR)),
    "directions of a schedule": ("directions", lambda: schedule(directions=PAIR)),
    "every": ("every", lambda: schedule(every=np.array([3]))),
    "x": ("x", lambda: path_loss(Flow(BentIdentity(), StandardNormal(2)), np.ones((3, 2)), torch.ones(3, 2))),
    "score": ("score", lambda: path_loss(Flow(BentIdentity(), StandardNormal(2)), torch.ones(3, 2), np.ones((3, 2)))),
}


def schedule(**options: Any) -> None:
    layer = eye(property=p4.LowRankUpdate)
    p4.MergeScheduler(layer, torch.optim.Adam(layer.parameters()), **options)


@pytest.mark.parametrize("name", WRONG)
def test_arrays_are_refused_by_name(name: str) -> None:
    argument, call = WRONG[name]
    with pytest.raises(ArgumentError, match=f"^`{argument}.* must be .*, got "):
        call()


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_arrays_are_no_bases(name: str) -> None:
    row = PERTURBATIONS[name]
    make = row.options.get("sample") or _cases.default_sample(row.factory, row.options.get("shape", (6, 6)))
    base = make(torch.Generator().manual_seed(0))
    with pytest.raises(ArgumentError, match=r"`base` must be a tensor .*got numpy.ndarray"):
        row.factory(base.numpy())
    holder = nn.Module()
    holder.weight = nn.Parameter(base.clone())
    p4.perturb(holder, "weight", row.factory)
    with pytest.raises(ArgumentError, match=r"`tensor` must be of shape .*, got ndarray"):
        holder.weight = base.numpy()


BIJECTIONS: dict[str, Callable[[], Bijection]] = {
    "mlp": lambda: InvertibleMLP(2, 4),
    "linear": lambda: InvertibleLinear(2),
    "coupling": lambda: AffineCoupling(2),
    "spline": lambda: SplineCoupling(2, [0]),
    "chain": lambda: Chain([InvertibleLinear(2), AffineCoupling(2)]),
    "empty chain": lambda: Chain([]),
    "bent": BentIdentity,
    "inverse": lambda: Inverse(BentIdentity()),
    "swap": lambda: Swap(2),
    "partial": lambda: Partial(2, [0, 1], Swap(2)),
    "volume": lambda: VolumePreserving(Chain([InvertibleLinear(2)])),
}


@pytest.mark.parametrize("name", BIJECTIONS)
def test_arrays_are_no_points(name: str) -> None:
    bijection = BIJECTIONS[name]()
    flow: Callable[..., object] = Flow(bijection, StandardNormal(2)).log_prob
    for function in (bijection, bijection.inverse, flow):
        with pytest.raises(ArgumentError, match=r"`[xz]` must be a tensor .*got numpy.ndarray"):
            function(np.ones((3, 2)))


@pytest.mark.parametrize("name", ["linear", "coupling", "spline", "chain", "volume"])
def test_points_of_another_dtype(name: str) -> None:
    """As numpy gives them: float64."""
    bijection, x = BIJECTIONS[name](), torch.from_numpy(np.ones((3, 2)))
    for function in (bijection, bijection.inverse):
        with pytest.raises(ArgumentError, match=r"`[xz]` must be of the parameters' dtype, torch.float32, got .*64"):
            function(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z: Tensor = bijection(x.bfloat16())[0]
    assert z.shape == x.shape


def test_checks_give_python_numbers_back() -> None:
    assert type(check_integer("n", N(3), 1)) is int
    assert type(check_number("c", F(3), 0.0)) is float and type(check_number("c", N(3), 0.0)) is int
    assert [type(value) for value in check_indices("i", np.arange(3), 3)] == [int] * 3
    with pytest.raises(ArgumentError, match="`n` must be an integer from 1 to 2, got 3"):
        check_integer("n", 3, 1, 2)
