"""Posteriors of sbi by flows of p4torch, trained by sbi's own loop."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.two_moons import crescent, posterior, simulate
from torch import Tensor, nn

import p4torch as p4
from p4torch.errors import ArgumentError
from p4torch.flows import AffineCoupling, Chain, Flow, InvertibleLinear, StandardNormal

pytest.importorskip("sbi")
from sbi.inference import NLE, NPE
from sbi.utils import BoxUniform

from p4torch.interop.sbi import density_estimator, spline_flow

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

#: float32 rounding of a handful of layers.
SINGLE = 1e-4


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbi writes logs into the current folder."""
    monkeypatch.chdir(tmp_path)


def small(features: int, context: int) -> Flow:
    layers = [
        AffineCoupling(features, (16,), context=context),
        InvertibleLinear(features, context=context, context_rank=1),
        AffineCoupling(features, (16,), context=context),
    ]
    return Flow(Chain(layers), StandardNormal(features))


def simulations(count: int = 400) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    theta = 2 * torch.rand(count, 2, generator=generator) - 1
    return theta, simulate(theta, generator)


def merges(model: nn.Module) -> int:
    return max(int(site.perturbation.attempts) for site in p4.sites(model))


def test_the_exact_posterior_of_two_moons() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([-0.3, 0.2])
    theta = posterior(x, 500, generator)
    assert theta.shape == (500, 2) and bool((theta.abs() <= 1).all())
    total, difference = theta.sum(-1), theta[:, 0] - theta[:, 1]
    radius = ((x + torch.stack([total.abs(), difference], -1) / 2**0.5) - torch.tensor([0.25, 0.0])).norm(dim=-1)
    assert float((radius - 0.1).abs().max()) < 0.06  # six deviations
    assert 0.4 < float((total > 0).float().mean()) < 0.6
    assert crescent(3, generator).shape == (3, 2)


@pytest.mark.parametrize("build", [small, spline_flow])
def test_inference_with_merges_in_the_loop_of_sbi(build: Any) -> None:
    torch.manual_seed(0)
    theta, x = simulations()
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    inference = NPE(prior, density_estimator=density_estimator(build, every=5), show_progress_bars=False)
    estimator = inference.append_simulations(theta, x).train(max_num_epochs=4, training_batch_size=50)
    assert 0 < merges(estimator) <= 7  # of the best of 5 epochs of 7 steps (sbi counts from 0), every fifth
    losses = inference.summary["training_loss"]
    assert losses[-1] < losses[0]
    samples = inference.build_posterior(estimator).sample((50,), x=x[0], show_progress_bars=False)
    assert samples.shape == (50, 2) and bool((samples.abs() <= 1).all())


def test_a_second_round_and_an_embedding() -> None:
    torch.manual_seed(0)
    theta, x = simulations()
    prior, embedding = BoxUniform(-torch.ones(2), torch.ones(2)), nn.Sequential(nn.Linear(2, 5), nn.ReLU())
    builder = density_estimator(small, embedding_net=embedding, every=5)
    inference = NPE(prior, density_estimator=builder, show_progress_bars=False)
    estimator = inference.append_simulations(theta, x).train(max_num_epochs=1, training_batch_size=50)
    first = merges(estimator)
    proposal = inference.build_posterior().set_default_x(x[0])
    more = proposal.sample((200,), show_progress_bars=False)
    inference.append_simulations(more, simulate(more, torch.Generator().manual_seed(1)), proposal=proposal)
    estimator = inference.train(max_num_epochs=1, training_batch_size=50)
    assert merges(estimator) > first > 0
    assert estimator.embedding_net is embedding


def test_likelihoods() -> None:
    torch.manual_seed(0)
    theta, x = simulations()
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    inference = NLE(prior, density_estimator=density_estimator(small, every=5), show_progress_bars=False)
    estimator = inference.append_simulations(theta, x).train(max_num_epochs=1, training_batch_size=50)
    assert merges(estimator) > 0
    assert estimator.log_prob(x[:3].unsqueeze(0), theta[:3]).shape == (1, 3)


@pytest.mark.parametrize("standardize", [False, True])
def test_densities_samples_and_shapes(standardize: bool) -> None:
    torch.manual_seed(0)
    theta, x = simulations()
    estimator = density_estimator(small, standardize=standardize)(3 * theta + 1, x)
    condition = x[:4]
    samples, log_prob = estimator.sample_and_log_prob(torch.Size((5, 2)), condition)
    assert samples.shape == (5, 2, 4, 2) and log_prob.shape == (5, 2, 4)
    again = estimator.log_prob(samples.flatten(0, 1), condition)
    torch.testing.assert_close(again.reshape(5, 2, 4), log_prob, rtol=0, atol=SINGLE)
    assert estimator.sample(torch.Size((5, 2)), condition).shape == (5, 2, 4, 2)
    torch.testing.assert_close(estimator.loss(samples[0, 0], condition), -log_prob[0, 0], rtol=0, atol=SINGLE)
    axis = torch.linspace(-25, 25, 501)
    with torch.no_grad():
        grid = torch.cartesian_prod(axis, axis).unsqueeze(1)
        mass = estimator.log_prob(grid, condition).exp().sum(0) * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(mass, torch.ones(4), rtol=0, atol=1e-2)  # a coarse grid


def test_inputs_and_conditions_of_other_shapes() -> None:
    theta, x = torch.randn(20, 3, 2), torch.randn(20, 4, 5)
    estimator = density_estimator(small)(theta, x)
    assert estimator.sample(torch.Size((7,)), x[:2]).shape == (7, 2, 3, 2)
    assert estimator.log_prob(theta, x).shape == (1, 20)
    assert estimator.log_prob(theta[:1], x).shape == (1, 20)
    assert copy.deepcopy(estimator).loss(theta, x).shape == (20,)
    with pytest.raises(ValueError, match="condition"):
        estimator.log_prob(theta, x[:, :3])


def test_what_is_refused() -> None:
    theta, x = simulations(20)
    for build in (lambda n, c: Chain([]), lambda n, c: Flow(Chain([]), StandardNormal(n))):
        with pytest.raises(ArgumentError, match="`build` must be a function that returns a Flow of 2 context features"):
            density_estimator(build)(theta, x)  # type: ignore[arg-type]
