"""First derivatives of every property and every bijection, used more than once: as a plain loop over backward passes
gives them, with `create_graph`, many at once, and forwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.constructors import PERTURBATIONS
from tests.flows.bijections import BIJECTIONS, randomized
from torch import Tensor, nn
from torch.autograd import forward_ad

from p4torch.flows._logabsdet import affine_logabsdet, solve_logabsdet
from p4torch.testing import _cases

#: Two orders of the same sums in float64, through a layer and its inverse.
ORDER = 1e-9

Outputs = Callable[[], tuple[Tensor, ...]]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=ORDER, atol=ORDER * (1 + float(expected.abs().max())))


def check_gradients(make: Outputs, parameters: list[nn.Parameter]) -> None:
    """Of all outputs, with and without `create_graph`, one by one and at once."""
    outputs = [value for value in make() if value.requires_grad]  # some log-determinants are constants
    directions = [torch.randn(2, *value.shape, dtype=value.dtype) for value in outputs]

    def gradients(chosen: list[Tensor], **options: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            outputs, parameters, chosen, retain_graph=True, allow_unused=True, materialize_grads=True, **options
        )

    single = [gradients([value[index] for value in directions]) for index in range(2)]
    linked = [gradients([value[index] for value in directions], create_graph=True) for index in range(2)]
    batched = gradients(directions, is_grads_batched=True)
    for got in (zip(*linked, strict=True), batched):
        for expected, value in zip(zip(*single, strict=True), got, strict=True):
            close(torch.stack(value) if isinstance(value, tuple) else value, torch.stack(expected))


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_properties(name: str, size: str) -> None:
    row = PERTURBATIONS[name]
    factory, shape, sample = row.factory, row.options.get("shape", (6, 6)), row.options.get("sample")
    if size == "large":
        if row.large is None:
            pytest.skip("no large element")
        shape, sample, factory = row.large.shape, row.large.sample, row.large.factory or factory
    generator = torch.Generator().manual_seed(0)
    make = sample or _cases.default_sample(factory, shape)
    base = make(generator).to(torch.complex128 if "unitary" in name else torch.float64)
    perturbation = factory(base)
    with torch.no_grad():
        for _, value in perturbation.own_parameters():
            value.add_(torch.randn_like(value) * 0.1 / shape[-1] ** 0.5)
    parameters = [value for _, value in perturbation.own_parameters() if value.requires_grad]
    x = torch.randn(*base.shape[:-2], 5, base.shape[-1], dtype=base.dtype)
    square = base.dim() > 1 and base.shape[-1] == base.shape[-2]

    def outputs() -> tuple[Tensor, ...]:
        if base.dim() == 1:
            return perturbation(base), perturbation(perturbation(base).detach() + base)
        y = perturbation.affine(base, x, None)
        if not square:
            return perturbation(base), y
        return perturbation.affine(base, y.sin(), None), *affine_logabsdet(perturbation, base, y, None)

    check_gradients(outputs, parameters)
    if square and "fixed-rank" not in name and "skew" not in name:  # those are singular, or may be
        check_gradients(
            lambda: (
                perturbation.solve(base, perturbation.affine(base, x, None).sin()),
                *solve_logabsdet(perturbation, base, x),
                perturbation.inverse(base),
            ),
            parameters,
        )


@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijections(name: str) -> None:
    factory, features = BIJECTIONS[name]
    bijection = factory()
    bijection = bijection if "complex" in name else bijection.double()
    randomized(bijection, 0.1)
    dtype = torch.complex128 if "complex" in name else torch.float64
    x = nn.Parameter(torch.randn(3, features, dtype=dtype))
    parameters = [x, *(value for value in bijection.parameters() if value.requires_grad)]

    def outputs() -> tuple[Tensor, ...]:
        z, there = bijection(x)
        back, again = bijection.inverse(z.sin())
        return bijection(z.sin())[0], there, back, again

    check_gradients(outputs, parameters)


@pytest.mark.parametrize("name", [name for name in BIJECTIONS if "complex" not in name])
def test_jacobians_of_bijections(name: str) -> None:
    factory, features = BIJECTIONS[name]
    bijection = factory().double()
    jacobian = torch.autograd.functional.jacobian
    point, direction = torch.randn(2, features, dtype=torch.float64)
    for function in (lambda value: bijection(value)[0], lambda value: bijection.inverse(value)[0]):
        expected = jacobian(function, point)
        close(jacobian(function, point, vectorize=True), expected)
        close(torch.func.jacrev(function)(point), expected)
        close(torch.func.jacfwd(function)(point), expected)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(point, direction))).tangent
        close(tangent, expected @ direction)
