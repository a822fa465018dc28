"""Path gradients of the likelihood: the fast sweep against two passes, their mean, and their silence at the optimum."""

from __future__ import annotations

import pytest
import torch
from tests.flows.bijections import BIJECTIONS
from torch import Tensor, nn

from p4torch.errors import ArgumentError, P4Error
from p4torch.flows import (
    AffineCoupling,
    Chain,
    Flow,
    InvertibleLinear,
    NormalAndUniform,
    Partial,
    SplineCoupling,
    StandardNormal,
    path_loss,
)
from p4torch.flows.path_gradient import path_loss_reference

#: Two orders of the same float64 operations; linear layers are undone by a tracked inverse.
ROUNDING = 1e-8
#: A mean of independent numbers lies within so many standard errors of its expectation, all of a few dozen at once.
ERRORS = 5
REAL = [name for name in BIJECTIONS if "complex" not in name]


def shaken(flow: Flow, scale: float = 0.3) -> Flow:
    """In float64, away from the identity that it starts as."""
    flow = flow.double()
    with torch.no_grad():
        for parameter in flow.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter) / max(1, parameter.numel()) ** 0.25)
    return flow


def gradients(flow: Flow, loss: Tensor) -> list[Tensor]:
    parameters = [value for value in flow.parameters() if value.requires_grad]
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


def molecular() -> Flow:
    """Like those of molecules: splines on the line and the circle, and linear layers between them."""
    layers: list[nn.Module] = []
    for half in ((0, 2, 4), (1, 3, 5), (0, 1, 4)):
        layers += [SplineCoupling(6, half, (4, 5), hidden=(8,)), Partial(6, range(4), InvertibleLinear(4, rank=2))]
    return Flow(Chain(layers), NormalAndUniform(6, (4, 5)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REAL)
def test_one_sweep_is_two_passes(name: str) -> None:
    torch.manual_seed(0)
    build, features = BIJECTIONS[name]
    flow = shaken(Flow(Chain([build(), InvertibleLinear(features), build()]), StandardNormal(features)))
    x, score = torch.randn(2, 7, features, dtype=torch.float64).unbind(0)
    fast, reference = path_loss(flow, x, score), path_loss_reference(flow, x, score)
    torch.testing.assert_close(fast, -flow.log_prob(x).mean(), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(reference, fast, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(gradients(flow, fast), gradients(flow, reference), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("shape", [(5,), (2, 3), ()])
def test_of_a_molecule(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    flow = shaken(molecular())
    x, score = torch.randn(2, *shape, 6, dtype=torch.float64).unbind(0)
    expected = gradients(flow, path_loss_reference(flow, x, score))
    torch.testing.assert_close(gradients(flow, path_loss(flow, x, score)), expected, rtol=ROUNDING, atol=ROUNDING)


def test_nothing_to_learn_where_the_flow_is_right() -> None:
    torch.manual_seed(2)
    flow = shaken(molecular())
    x = flow.sample(50).requires_grad_()
    score = torch.autograd.grad(flow.log_prob(x).sum(), x)[0]
    for gradient in gradients(flow, path_loss(flow, x, score)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=ROUNDING)


def test_the_mean_is_the_gradient_of_the_likelihood_with_less_noise() -> None:
    torch.manual_seed(3)
    target = shaken(Flow(Chain([AffineCoupling(4, hidden=(8,)), InvertibleLinear(4)]), StandardNormal(4)), 0.1)
    flow = shaken(Flow(Chain([InvertibleLinear(4), AffineCoupling(4, hidden=(8,))]), StandardNormal(4)), 0.1)
    noise = []
    differences = []
    for _ in range(200):
        x = target.sample(100).requires_grad_()
        score = torch.autograd.grad(target.log_prob(x).sum(), x)[0]
        losses = path_loss(flow, x, score), -flow.log_prob(x).mean()
        path, plain = (torch.cat([value.flatten() for value in gradients(flow, loss)]) for loss in losses)
        differences.append(path - plain)
        noise.append(torch.stack([path, plain]))
    means, spread = torch.stack(differences).mean(0), torch.stack(differences).std(0) / len(differences) ** 0.5
    assert bool((means.abs() <= ERRORS * spread + ROUNDING).all())
    path_noise, plain_noise = torch.stack(noise).var(0).sum(-1).tolist()
    assert path_noise < plain_noise / 2


def test_weights_are_shares() -> None:
    torch.manual_seed(6)
    flow = shaken(molecular())
    x, score = torch.randn(2, 4, 6, dtype=torch.float64).unbind(0)
    weights = torch.tensor([2.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    copies = [0, 0, 2, 3]
    got = gradients(flow, path_loss(flow, x, score, weights))
    expected = gradients(flow, path_loss(flow, x[copies], score[copies]))
    torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING)
    reference = gradients(flow, path_loss_reference(flow, x, score, weights))
    torch.testing.assert_close(got, reference, rtol=ROUNDING, atol=ROUNDING)
    with pytest.raises(ArgumentError, match=r"`weights` must be one a point, \(4,\), got \(3,\)"):
        path_loss(flow, x, score, weights[:3])


def test_what_a_point_adds_is_bounded() -> None:
    torch.manual_seed(7)
    flow = shaken(molecular())
    x, score = torch.randn(2, 4, 6, dtype=torch.float64).unbind(0)
    free = gradients(flow, path_loss(flow, x, score))
    loose = gradients(flow, path_loss(flow, x, score, bound=1e6))
    torch.testing.assert_close(loose, free, rtol=ROUNDING, atol=ROUNDING)
    score[0] *= 1e9
    sizes = [
        float(torch.cat([value.flatten() for value in gradients(flow, path_loss(flow, x, score, bound=bound))]).norm())
        for bound in (1e12, 5.0)
    ]
    assert sizes[1] < 1e-6 * sizes[0]
    single = x[:1], score[:1]
    one, two = (gradients(flow, path_loss(flow, *single, bound=bound)) for bound in (1.0, 2.0))
    torch.testing.assert_close([2 * value for value in one], two, rtol=ROUNDING, atol=ROUNDING)


def test_points_without_a_score_add_nothing() -> None:
    torch.manual_seed(4)
    flow = shaken(molecular())
    x, score = torch.randn(2, 6, 6, dtype=torch.float64).unbind(0)
    broken = score.clone()
    broken[0, 3], broken[1, 1] = torch.nan, torch.inf
    got = gradients(flow, path_loss(flow, x, broken))
    rest = [value * 4 / 6 for value in gradients(flow, path_loss(flow, x[2:], score[2:]))]
    torch.testing.assert_close(got, rest, rtol=ROUNDING, atol=ROUNDING)


def test_scores_of_another_shape_are_refused() -> None:
    flow = molecular()
    with pytest.raises(ArgumentError, match=r"`score` must be of the shape of x, \(5, 6\), got \(5,\)"):
        path_loss(flow, torch.zeros(5, 6), torch.zeros(5))


def test_parameters_that_are_frozen_stay_out() -> None:
    torch.manual_seed(5)
    flow = shaken(molecular())
    last = next(iter(flow.parameters())).requires_grad_(False)
    x, score = torch.randn(2, 6, 6, dtype=torch.float64).unbind(0)
    path_loss(flow, x, score).backward()
    assert last.grad is None
    assert all(value.grad is not None for value in flow.parameters() if value.requires_grad)


def test_a_second_derivative_is_refused_and_not_taken_for_zero() -> None:
    flow = shaken(molecular())
    x, score = torch.randn(2, 5, 6, dtype=torch.float64).unbind(0)
    parameters = [value for value in flow.parameters() if value.requires_grad]
    first = torch.autograd.grad(path_loss(flow, x, score), parameters, create_graph=True)
    with pytest.raises(P4Error, match="once, not twice"):
        torch.autograd.grad(sum(value.square().sum() for value in first), parameters)


def test_arrays_are_refused_by_name() -> None:
    flow, x = molecular(), torch.randn(5, 6)
    with pytest.raises(ArgumentError, match="`x` must be a tensor"):
        path_loss(flow, x.numpy(), x)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="`score` must be a tensor"):
        path_loss(flow, x, x.numpy())  # type: ignore[arg-type]


def test_first_derivatives_with_create_graph_and_no_second_ones() -> None:
    flow = shaken(Flow(InvertibleLinear(3), StandardNormal(3)))
    loss = path_loss(flow, *torch.randn(2, 5, 3, dtype=torch.float64).unbind(0))
    parameters = [value for value in flow.parameters() if value.requires_grad]
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    for got, expected in zip(first, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    with pytest.raises(P4Error, match="differentiated once, not twice"):
        torch.autograd.grad(first[0].square().sum() + parameters[0].square().sum(), parameters)
