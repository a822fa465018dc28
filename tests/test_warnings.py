"""Warnings point at the line of the user's own call."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import p4torch as p4


def _assign() -> None:
    layer = nn.Linear(3, 3)
    nn.init.eye_(layer.weight)
    p4.perturb(layer, "weight", p4.Orthogonal)
    layer.weight = 2 * torch.eye(3)


def _recover(attached: bool) -> None:
    layer = p4.perturb(nn.Linear(3, 3), "weight", p4.LowRankUpdate)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    scheduler = p4.MergeScheduler(layer, optimizer, every=1)
    if attached:
        scheduler.attach()
    layer.bias.data.fill_(torch.nan)
    optimizer.step()
    if not attached:
        scheduler.step()


def _finalize() -> None:
    network = p4.LipschitzNetwork(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), 50.0, rank=1, at="merge", scale=1.0)
    with torch.no_grad():
        for site in p4.sites(network):
            site.perturbation.u.fill_(10.0)
    p4.finalize(network)


CALLS: dict[str, Callable[[], object]] = {
    "perturb": lambda: p4.perturb(nn.Linear(3, 3), "weight", p4.Orthogonal),
    "perturb-convolution": lambda: p4.perturb(nn.Conv2d(2, 2, 2), "weight", p4.Orthogonal),
    "perturb-zeros": lambda: p4.perturb(nn.Linear(3, 3), "weight", p4.Nonnegative, floor=0.0),
    "property": lambda: p4.Orthogonal(torch.eye(3)).right_inverse(2 * torch.eye(3)),
    "assign": _assign,
    "assign-view": lambda: setattr(
        p4.perturb(nn.LSTM(3, 4), "weight_hh_l0", p4.Orthogonal), "weight_hh_l0", torch.ones(16, 4)
    ),
    "flow": lambda: p4.flows.InvertibleLinear(3, property=p4.Orthogonal, init=2 * torch.eye(3)),
    "lipschitz": lambda: p4.LipschitzNetwork(nn.Sequential(nn.Linear(3, 3)), 1e-3),
    "lipschitz-finalize": _finalize,
    "recovery": lambda: _recover(False),
    "recovery-attached": lambda: _recover(True),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_line_is_the_callers(name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CALLS[name]()
    own = [warning for warning in caught if issubclass(warning.category, (p4.ProjectionWarning, p4.RecoveryWarning))]
    assert own and {warning.filename for warning in own} == {__file__}
