"""Standardisation: fitted to data, saved with the flow, and errors for data that cannot be standardised."""

from __future__ import annotations

import copy

import pytest
import torch

from p4torch.errors import ArgumentError
from p4torch.flows import Chain, Flow, Inverse, Log, Partial, Standardize, StandardNormal
from p4torch.flows.standardize import shrunk_correlation

#: Roundings of means and scales in float32.
ROUNDINGS = 1e-5
#: What shrinkage of two thousand rows leaves of correlations.
SHRUNK = 2e-2
SCALES = torch.tensor([1e-3, 1.0, 570.0])


def table(rows: int = 200) -> torch.Tensor:
    return SCALES * (torch.randn(rows, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 5.0, 2.0]))


def test_fitted_points_have_mean_zero_and_deviation_one() -> None:
    layer, x = Standardize(3), table()
    assert torch.equal(layer(x)[0], x)
    layer.fit_scale(x)
    z, logabsdet = layer(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=ROUNDINGS)
    torch.testing.assert_close(z.std(0), torch.ones(3), rtol=0, atol=ROUNDINGS)
    torch.testing.assert_close(logabsdet, -x.std(0).log().sum(), rtol=ROUNDINGS, atol=0)
    torch.testing.assert_close(layer.inverse(z)[0] / SCALES, x / SCALES, rtol=0, atol=ROUNDINGS)


def test_a_chain_fits_each_layer_to_what_arrives_there() -> None:
    x = (table() / SCALES).exp() * SCALES
    inner = Standardize(2)
    flow = Flow(Chain([Partial(3, (0, 2), Chain([Log(), inner])), Standardize(3)]), StandardNormal(3))
    flow.fit_scale(x)
    z, _ = flow.bijection(x)
    torch.testing.assert_close(z.std(0), torch.ones(3), rtol=0, atol=ROUNDINGS)
    torch.testing.assert_close(inner.scale, x[:, [0, 2]].log().std(0), rtol=ROUNDINGS, atol=0)


def test_mean_and_scale_are_state_and_do_not_train() -> None:
    layer, x = Standardize(3), table()
    layer.fit_scale(x)
    assert not list(layer.parameters())
    for other in (Standardize(3), copy.deepcopy(layer)):
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x)[0], layer(x)[0])


def test_the_inverse_of_a_layer_is_left_as_it_is() -> None:
    layer = Standardize(3)
    Inverse(layer).fit_scale(table())
    assert torch.equal(layer.scale, torch.ones(3))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(5, 3), r"constant features \[0, 1, 2\]"),
        (torch.tensor([[0.0, 1, 2]]), "at least two points"),
        (torch.tensor([[0.0, 1, 2], [1, 2, float("nan")]]), "must be finite"),
        (torch.zeros(5, 2), r"of shape \(..., 3\)"),
        (torch.tensor([[0.0, 1, 1e6], [1, 2, 1e6]]), r"features that vary.*constant features \[2\]"),
    ],
)
def test_data_that_cannot_be_standardised(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Standardize(3).fit_scale(x)


def test_whitening_takes_correlations_away_and_comes_back() -> None:
    x = table(2000) @ torch.tensor([[1.0, 0, 0], [2e-4, 1.0, 0], [1e-6, 1e-3, 1.0]])
    layer = Standardize(3, whiten=True).double()
    layer.fit_scale(x.double())
    z, logabsdet = layer(x.double())
    exact = torch.cov(x.double().mT)
    assert (torch.cov(z.mT) - torch.eye(3)).abs().max() < SHRUNK
    torch.testing.assert_close(layer.inverse(z)[0], x.double(), rtol=ROUNDINGS, atol=ROUNDINGS)
    assert abs(float(logabsdet + torch.linalg.slogdet(exact)[1] / 2)) < SHRUNK


def test_few_rows_are_shrunk_and_features_that_depend_on_each_other_stay_invertible() -> None:
    """Correlations of five rows are noise: the estimate is close to the identity, that of many rows is not touched."""
    noise = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few = shrunk_correlation((noise - noise.mean(0)) / noise.std(0))
    assert torch.linalg.eigvalsh(few).min() > 0.1
    x = torch.randn(500, 1, dtype=torch.float64)
    layer = Standardize(2, whiten=True)
    layer.fit_scale(torch.cat([x, 2 * x], -1).float())
    assert all(value.isfinite().all() for value in layer.state_dict().values())
