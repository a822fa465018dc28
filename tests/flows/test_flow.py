"""Flows: densities that integrate to one, samples that agree with them, training, precision at depth."""

import copy
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.flows import AffineCoupling, Chain, Flow, InvertibleLinear, InvertibleMLP, StandardNormal, Swap

#: Round trip of a 200-layer flow in float32.
ROUND_TRIP = 1e-4


def _mixture(count: int, generator: torch.Generator) -> Tensor:
    """Four narrow Gaussians on a circle of radius 2."""
    angle = torch.randint(4, (count,), generator=generator) * (math.pi / 2)
    centre = 2 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return centre + 0.3 * torch.randn(count, 2, generator=generator)


def _train(flow: Flow, steps: int, lr: float = 5e-3, every: int = 20) -> p4.MergeScheduler:
    optimizer = torch.optim.Adam(p4.parameter_groups(flow), lr=lr)
    schedule = p4.MergeScheduler(flow, optimizer, every=every)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        (-flow.log_prob(_mixture(256, generator)).mean()).backward()
        optimizer.step()
        schedule.step()
    return schedule


def test_standard_normal() -> None:
    normal = StandardNormal(3)
    x = normal.sample(5, torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(normal.log_prob(x), expected)
    assert normal.double().sample(2).dtype == torch.float64


def test_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    flow = Flow(InvertibleMLP(2, depth=8, init="orthogonal"), StandardNormal(2)).double()
    axis = torch.linspace(-24, 24, 800, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(mass) - 1) < 1e-3  # the grid's own error at the tails


def test_sample_with_log_prob_agrees_with_log_prob() -> None:
    torch.manual_seed(0)
    layers = [AffineCoupling(4, hidden=(16,)), Swap(4), InvertibleLinear(4, init="orthogonal", rank=2)]
    flow = Flow(Chain(layers), StandardNormal(4)).double()
    x, log_prob = flow.sample_with_log_prob(50, torch.Generator().manual_seed(1))
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-10)  # float64 rounding
    assert torch.equal(flow.rsample(50, torch.Generator().manual_seed(1)), x)
    assert torch.equal(flow(x), flow.log_prob(x))


def test_samples_are_differentiable_through_the_inverse() -> None:
    flow = Flow(InvertibleMLP(2, depth=4), StandardNormal(2))
    x, log_prob = flow.sample_with_log_prob(16)
    (log_prob.mean() + x.square().mean()).backward()
    for name, value in flow.named_parameters():
        # V multiplies U = 0: its gradient is zero, but it is there
        assert (value.grad is not None) == value.requires_grad, name


def test_deep_flow_inverts_its_own_samples_before_and_after_training() -> None:
    torch.manual_seed(0)
    flow = Flow(InvertibleMLP(2, depth=200, init="scattered", rank=1, scale=1.0), StandardNormal(2))
    for steps in (0, 400):
        schedule = _train(flow, steps)
        for with_gradients in (False, True):
            with torch.set_grad_enabled(with_gradients):
                x = flow.sample(5000, torch.Generator().manual_seed(2))
                z, _ = flow.bijection(x)
                again, _ = flow.bijection.inverse(z)
            assert float((again - x).detach().abs().max()) <= ROUND_TRIP, f"after {steps} steps"
    assert schedule.merged == 20 * 200 - schedule.skipped


def test_without_gradients_a_deep_chain_is_as_exact_as_its_dtype() -> None:
    torch.manual_seed(0)
    flow = Flow(InvertibleMLP(2, depth=200, init="orthogonal"), StandardNormal(2))
    _train(flow, 100)
    x = _mixture(200, torch.Generator().manual_seed(4))
    with torch.no_grad():
        quiet = flow.log_prob(x)
        exact = copy.deepcopy(flow).double().log_prob(x.double())
    torch.testing.assert_close(quiet, exact.float(), rtol=1e-6, atol=1e-6)  # one rounding of the result
    torch.testing.assert_close(flow.log_prob(x).detach(), quiet, rtol=0, atol=1e-3)  # rounding of 200 float32 layers


def test_training_lowers_the_loss_and_finalize_changes_nothing() -> None:
    torch.manual_seed(0)
    flow = Flow(InvertibleMLP(2, depth=20), StandardNormal(2))
    x = _mixture(500, torch.Generator().manual_seed(3))
    before = float(flow.log_prob(x).detach().mean())
    _train(flow, 300)
    after = flow.log_prob(x).detach()
    assert float(after.mean()) > before + 0.3
    plain = p4.finalize(copy.deepcopy(flow))
    assert not list(p4.sites(plain))
    torch.testing.assert_close(plain.log_prob(x), after, rtol=1e-5, atol=1e-5)  # float32 through 20 layers
    z, _ = plain.bijection(x)
    torch.testing.assert_close(plain.bijection.inverse(z)[0], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", ["orthogonal", "scattered"])
def test_a_paired_start_is_a_rotation(init: Literal["orthogonal", "scattered"]) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 3)
    flow = InvertibleMLP(3, depth=40, init=init)
    with torch.no_grad():
        z, logabsdet = flow(x)
    torch.testing.assert_close(z.norm(dim=-1), x.norm(dim=-1), rtol=1e-4, atol=1e-4)  # of 40 float32 layers
    assert float(logabsdet.abs().max()) < 1e-4
    assert bool(flow.bias.any()) == (init == "scattered")


def test_plain_weights_load_into_a_flow() -> None:
    torch.manual_seed(0)
    source = Flow(Chain([InvertibleLinear(3, init="orthogonal")]), StandardNormal(3))
    target = Flow(Chain([InvertibleLinear(3)]), StandardNormal(3))
    x = torch.randn(4, 3)
    expected = source.log_prob(x).detach()
    target.load_state_dict(p4.finalize(source).state_dict())
    torch.testing.assert_close(target.log_prob(x), expected)


def test_bad_count() -> None:
    flow = Flow(Swap(2), StandardNormal(2))
    with pytest.raises(ArgumentError, match="`count`"):
        flow.sample(0)


def test_torch_func_transforms() -> None:
    flow = Flow(InvertibleMLP(2, depth=6, init="scattered"), StandardNormal(2)).double()
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(flow.log_prob))(x), expected)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda point: flow.bijection(point)[0]))(x)
    torch.testing.assert_close(torch.linalg.slogdet(jacobians)[1], flow.bijection(x)[1])


def test_a_torch_distribution_as_latent() -> None:
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    flow = Flow(InvertibleMLP(2, depth=4, init="scattered"), normal)
    x, log_prob = flow.sample_with_log_prob(7)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-4, atol=1e-4)  # float32, four layers
    with pytest.raises(ArgumentError, match="`generator`"):
        flow.sample(3, torch.Generator())


@pytest.mark.parametrize(
    ("bijection", "base", "argument"), [(None, StandardNormal(2), "bijection"), (Swap(2), None, "base")]
)
def test_what_is_no_flow(bijection: Any, base: Any, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}` must be"):
        Flow(bijection, base)


def test_no_points_at_all() -> None:
    for bijection in (AffineCoupling(4, hidden=(3,)), InvertibleLinear(4), InvertibleMLP(4, depth=3), Swap(4)):
        z, logabsdet = bijection(torch.zeros(0, 4))
        assert z.shape == (0, 4)
        assert logabsdet.shape in ((), (0,))


def test_integers_are_refused() -> None:
    with pytest.raises(ArgumentError, match="`x` must be of a floating-point dtype"):
        InvertibleMLP(2, depth=2)(torch.ones(3, 2, dtype=torch.int64))
