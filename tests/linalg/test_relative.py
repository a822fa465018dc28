"""Relative moves of a whole matrix: the fast node against its reference implementation."""

from __future__ import annotations

import pytest
import torch

from p4torch.flows import InvertibleLinear
from p4torch.linalg import relative
from p4torch.parametrize.sites import sites

#: Rounding in float64, of matrices of size 70 whose inverses are large.
ROUNDING = 1e-9
GAIN = 0.3

SHAPES = ((5, 5), (7, 2, 2), (2, 3, 4, 4), (3, 70, 70))


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_twin(shape: tuple[int, ...]) -> None:
    base, weights = torch.randn(2, *shape, dtype=torch.float64)
    b = (torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5).requires_grad_()
    results = []
    for function in (relative.product, relative.product_reference):
        weight, change = function(base, b, GAIN)
        (gradient,) = torch.autograd.grad((weights * weight).sum() + change.square().sum(), b)
        results.append((weight, change, gradient))
    for fast, plain in zip(*results, strict=True):
        assert fast.shape == plain.shape and (fast - plain).abs().max() < ROUNDING


def test_second_derivatives() -> None:
    base, b = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: relative.product(base, value, GAIN), (b.requires_grad_(),))
    assert torch.autograd.gradgradcheck(lambda value: relative.product(base, value, GAIN), (b,))


def test_negative_determinants_have_a_logarithm() -> None:
    """K = diag(-1, 1)."""
    b = torch.diag(torch.tensor([-2.0, 0.0])).requires_grad_()
    weight, change = relative.product(torch.eye(2), b, 1.0)
    assert float(change.detach()) == 0 and torch.equal(weight, torch.diag(torch.tensor([-1.0, 1.0])))
    change.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(b.grad, torch.diag(torch.tensor([-1.0, 1.0])))


@pytest.mark.parametrize("options", [{}, {"block": 3}, {"side": "left"}, {"form": "exponential"}, {"rank": 2}])
def test_a_layer_and_its_perturbation_agree_in_every_shape(options: dict[str, object]) -> None:
    layer = InvertibleLinear(7, init="orthogonal", **options).double()  # type: ignore[arg-type]
    (site,) = sites(layer)
    with torch.no_grad():
        for _, value in site.perturbation.own_parameters():
            value.add_(0.05 * torch.randn_like(value))
    x = torch.randn(6, 7, dtype=torch.float64)
    z, logabsdet = layer(x)
    weight = layer.weight
    assert (z - x @ weight.mT).abs().max() < ROUNDING
    assert (logabsdet - torch.linalg.slogdet(weight)[1]).abs().max() < ROUNDING
