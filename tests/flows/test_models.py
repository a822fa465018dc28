"""Models in one line: any number of features, with a context or without, and tables as they come."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

import p4torch as p4
from p4torch.errors import ArgumentError, StallWarning
from p4torch.flows import Flow
from p4torch.flows.models import NSF, MixingFlow, RealNVP

MODELS = [NSF, RealNVP, MixingFlow]
#: There and back through several layers in float64.
EXACT = 1e-8
#: Of the mass of a density on a grid.
ON_A_GRID = 1e-3


def trained(flow: Flow, x: torch.Tensor, steps: int, context: torch.Tensor | None = None) -> p4.MergeScheduler:
    optimizer = torch.optim.Adam(p4.parameter_groups(flow), lr=1e-3)
    merges = p4.MergeScheduler(flow, optimizer, every=5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -flow.log_prob(x, context).mean()
        loss.backward()
        optimizer.step()
        merges.step()
    return merges


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("model", MODELS)
def test_each_model_takes_any_number_of_features(model: Callable[..., Flow], context: int, features: int) -> None:
    flow = model(features, context).double()
    x = torch.randn(12, features, dtype=torch.float64) * 100
    given = torch.randn(12, context, dtype=torch.float64) if context else None
    flow.fit_scale(x, given)
    trained(flow, x, 6, given)
    z, logabsdet = flow.bijection(x, given) if context else flow.bijection(x)
    back, opposite = flow.bijection.inverse(z, given) if context else flow.bijection.inverse(z)
    torch.testing.assert_close(back, x, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(opposite, -logabsdet, rtol=EXACT, atol=EXACT)
    assert flow.sample(12, given).shape == (12, features)
    assert all(value.grad is not None for value in flow.parameters() if value.requires_grad)
    again = model(features, context).double()
    again.load_state_dict(flow.state_dict())
    torch.testing.assert_close(again.log_prob(x, given), flow.log_prob(x, given), rtol=0, atol=0)


@pytest.mark.parametrize("model", MODELS)
def test_densities_of_one_feature_integrate_to_one(model: Callable[..., Flow]) -> None:
    flow, x = model(1).double(), 3 + torch.randn(50, 1, dtype=torch.float64).exp()
    flow.fit_scale(x)
    trained(flow, x, 20)
    grid = torch.linspace(-60, 60, 20_001, dtype=torch.float64).unsqueeze(-1)
    mass = torch.trapezoid(flow.log_prob(grid).detach().exp(), grid[:, 0])
    assert abs(float(mass) - 1) < ON_A_GRID


@pytest.mark.parametrize("model", MODELS)
def test_a_raw_table_trains_from_the_first_step(model: Callable[..., Flow]) -> None:
    """Features of deviations 3e-3 to 570: no merge is skipped, nothing warns, and the likelihood grows."""
    datasets = pytest.importorskip("sklearn.datasets")
    x = torch.tensor(datasets.load_breast_cancer().data, dtype=torch.float32)
    flow = model(30)
    flow.fit_scale(x)
    before = float(flow.log_prob(x).detach().mean())
    with warnings.catch_warnings():
        warnings.simplefilter("error", StallWarning)
        merges = trained(flow, x, 15)
    assert merges.merged and not merges.skipped
    assert before < float(flow.log_prob(x).detach().mean())


def test_bad_arguments() -> None:
    for model in MODELS:
        with pytest.raises(ArgumentError, match="`features` must be an integer >= 1, got 0"):
            model(0)
        with pytest.raises(ArgumentError, match="`layers` must be an integer >= 1, got 0"):
            model(2, layers=0)
        with pytest.raises(ArgumentError, match="`context` must be an integer >= 0, got -1"):
            model(2, -1)
