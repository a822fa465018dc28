"""Target densities: mass, entropy, maximum and sampler, against an independent quadrature."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from experiments.targets import TARGETS, Target, get_target
from experiments.targets.laws import Curve
from torch import Tensor

from experiments import targets
from p4torch.errors import ArgumentError

HALF_WIDTH, CELL, NODES = 5.5, 0.5, 14  # cells of [−5.5, 5.5]², and quadrature nodes a side of a cell
CELLS = round(2 * HALF_WIDTH / CELL)
SAMPLES = 100_000

every = pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
smooth = pytest.mark.parametrize(
    "target", [t for t in TARGETS.values() if t.name != "checkerboard"], ids=lambda t: t.name
)
curves = pytest.mark.parametrize(
    "target", [t for t in TARGETS.values() if isinstance(t.law, Curve)], ids=lambda t: t.name
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def quadrature() -> tuple[Tensor, Tensor]:
    """Points (c², n², 2) and weights (n²,) of the Gauss–Legendre product rule in every cell, row by row."""
    rule = np.polynomial.legendre.leggauss(NODES)
    offsets, weights = torch.from_numpy(rule[0] + 1) * CELL / 2, torch.from_numpy(rule[1]) * CELL / 2
    corners = CELL * torch.arange(CELLS, dtype=torch.float64) - HALF_WIDTH
    points = torch.cartesian_prod(corners, corners)[:, None] + torch.cartesian_prod(offsets, offsets)
    return points, torch.outer(weights, weights).flatten()


@cache
def grid_log_density(target: Target) -> Tensor:
    """log p at the points of the quadrature."""
    return target.log_density(quadrature()[0])


@cache
def samples(target: Target) -> Tensor:
    return target.sample(SAMPLES, generator())


def cell_mass(target: Target) -> Tensor:
    return grid_log_density(target).exp() @ quadrature()[1]


@every
def test_density_integrates_to_one(target: Target) -> None:
    assert cell_mass(target).sum().item() == pytest.approx(1.0, abs=1e-6)


@every
def test_entropy_is_that_of_the_quadrature(target: Target) -> None:
    density = grid_log_density(target).exp()
    entropy = -torch.special.xlogy(density, density) @ quadrature()[1]
    assert entropy.sum().item() == pytest.approx(target.entropy, abs=1e-6)


def test_entropy_of_distant_gaussians_is_that_of_one_and_of_the_choice() -> None:
    expected = math.log(25) + 1 + math.log(math.tau * 0.15**2)
    assert get_target("25-gaussians").entropy == pytest.approx(expected, abs=1e-5)


@every
def test_samples_have_the_entropy(target: Target) -> None:
    surprise = -target.log_density(samples(target))
    error = surprise.std().item() / math.sqrt(SAMPLES)
    assert abs(surprise.mean().item() - target.entropy) <= 5 * error + 1e-9


@every
def test_samples_fill_the_cells_as_the_density_says(target: Target) -> None:
    column, row = ((samples(target).double() + HALF_WIDTH) / CELL).floor().long().clamp(0, CELLS - 1).unbind(-1)
    counts = torch.bincount(column * CELLS + row, minlength=CELLS**2).double()
    expected = SAMPLES * cell_mass(target)
    large = expected >= 10
    rare, rare_expected = counts[~large].sum().item(), expected[~large].sum().item()
    assert abs(rare - rare_expected) <= 5 * math.sqrt(rare_expected) + 1e-6
    statistic = ((counts - expected).square() / expected)[large].sum().item()
    freedom = int(large.sum())
    assert abs(statistic - freedom) <= 5 * math.sqrt(2 * freedom)


@every
def test_maximum_is_an_upper_bound(target: Target) -> None:
    highest = max(grid_log_density(target).max().item(), target.log_density(samples(target)).max().item())
    assert highest <= target.max_log_density
    assert highest >= target.max_log_density - 1e-3


@smooth
def test_maximum_is_reached_by_ascent(target: Target) -> None:
    best = grid_log_density(target).flatten().topk(50).indices
    x = quadrature()[0].reshape(-1, 2)[best].requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=200, tolerance_grad=1e-9, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def descend() -> Tensor:
        optimizer.zero_grad()
        loss = -target.log_density(x).sum()
        loss.backward()
        return loss

    for _ in range(5):  # a line search may give up before the top: where it does depends on the machine's rounding
        optimizer.step(descend)
        optimizer.state.clear()
    highest = target.log_density(x.detach()).max().item()
    assert target.max_log_density - 1e-6 <= highest <= target.max_log_density


@curves
def test_nodes_of_a_curve_are_fine_enough(target: Target) -> None:
    assert isinstance(target.law, Curve)
    x = 12 * torch.rand(2000, 2, generator=generator(), dtype=torch.float64) - 6
    finer = replace(target.law, nodes=2 * target.law.nodes)
    torch.testing.assert_close(target.log_density(x), finer.log_density(x), rtol=0, atol=1e-8)


@every
def test_samples_depend_on_the_generator_alone(target: Target) -> None:
    torch.manual_seed(1)
    first = target.sample(300, generator(7))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(target.sample(300, generator(7)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(target.sample(300, generator(8)), first)


@every
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_samples_are_float32_pairs(target: Target, count: int) -> None:
    x = target.sample(count, generator())
    assert x.shape == (count, 2)
    assert x.dtype == torch.float32
    assert target.log_density(x).isfinite().all()


@every
@pytest.mark.parametrize("shape", [(), (0,), (1300,), (3, 500)])
def test_log_density_keeps_leading_dimensions(target: Target, shape: tuple[int, ...]) -> None:
    x = target.sample(math.prod(shape), generator()).reshape(*shape, 2)
    values = target.log_density(x)
    assert values.shape == shape
    assert values.dtype == torch.float64
    for index in (0, -1):
        if values.numel():
            one = target.log_density(x.reshape(-1, 2)[index])
            torch.testing.assert_close(one, values.flatten()[index], rtol=0, atol=1e-10)


@every
def test_log_density_is_small_far_away(target: Target) -> None:
    far = target.log_density(torch.tensor([[1e4, -1e4], [-7.0, 7.0]]))
    assert (far < -50).all()
    assert not far.isnan().any()


@smooth
def test_log_density_is_differentiable(target: Target) -> None:
    x = target.sample(4, generator(3)).double().requires_grad_()
    assert torch.autograd.gradcheck(target.log_density, (x,))


def test_checkerboard_is_zero_off_its_squares() -> None:
    x = torch.tensor([[-3.0, -3.0], [-3.0, -1.0], [1.0, 1.0], [1.0, -1.0], [5.0, 5.0]])
    expected = torch.tensor([-1.0, -math.inf, -1.0, -math.inf, -math.inf], dtype=torch.float64)
    torch.testing.assert_close(get_target("checkerboard").log_density(x) / math.log(32.0), expected)


@every
def test_extent_holds_the_mass(target: Target) -> None:
    left, right, bottom, top = target.extent
    x, y = samples(target).unbind(-1)
    inside = (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
    assert inside.double().mean().item() >= 0.999


@every
def test_scale_suits_a_standard_normal_latent(target: Target) -> None:
    std, mean = torch.std_mean(samples(target), dim=0)
    assert mean.abs().max() < 0.5
    assert std.min() > 0.9
    assert std.max() < 2.4


def test_names_and_order() -> None:
    assert list(TARGETS) == [
        "eight-gaussians",
        "checkerboard",
        "two-moons",
        "two-spirals",
        "pinwheel",
        "rings",
        "swiss-roll",
        "25-gaussians",
    ]
    assert all(get_target(name) is target and target.name == name for name, target in TARGETS.items())


def test_errors_name_the_argument() -> None:
    with pytest.raises(ArgumentError, match=r"`name` must be one of eight-gaussians, .*, got 'moons'"):
        get_target("moons")
    with pytest.raises(ArgumentError, match=r"`x` must be of shape \(\.\.\., 2\), got \(4, 3\)"):
        get_target("rings").log_density(torch.zeros(4, 3))
    with pytest.raises(ArgumentError, match=r"`count` must be an integer >= 0, got -1"):
        get_target("rings").sample(-1, generator())


def test_example_of_the_docstring() -> None:
    assert doctest.testmod(targets).failed == 0
