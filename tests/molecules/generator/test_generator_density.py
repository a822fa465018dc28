"""Weights and losses of generators are exact."""

from __future__ import annotations

import math

import pytest
import torch
from tests.molecules.generator.small import frames, small, stirred
from tests.molecules.simulation.butane import butane, share_of
from tests.molecules.systems import system_of
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules import BoltzmannGenerator, Samples, ZMatrix
from p4torch.molecules.generator.molecular_flow import LARGEST, LINEAR
from p4torch.molecules.mixed import MixedCoordinates

MODELS = ["rnvp", "p4inv", "spline-p4inv"]
#: Energies (kT) and densities (nats) of frames that are stored in float32, of a stiff molecule.
STORED = 5e-3
#: Float32 flows there and back.
SINGLE = 5e-3
#: Standard errors that a right average may be off by.
SIGMAS = 4.5


@pytest.mark.parametrize("model", MODELS)
def test_weights_of_samples_are_exact(model: str) -> None:
    """Energies, densities and volumes are found again from the frames alone."""
    generator = stirred(small(model)).double()
    samples = generator.sample(50, torch.Generator().manual_seed(0))
    assert samples.frames.dtype == torch.float32 and samples.energies.dtype == torch.float64
    usable = samples.select(samples.log_weights > -math.inf)
    assert len(usable) > 25
    x = usable.frames.double()
    energies = generator.system.energy(x)
    low = energies < 1e3  # where rounding of positions does not move them by much
    torch.testing.assert_close(usable.energies[low], energies[low], atol=STORED, rtol=STORED)
    z, log_volume = generator.coordinates(x)
    log_prob = generator.flow.log_prob(z)
    torch.testing.assert_close(usable.log_prob, log_prob, atol=STORED, rtol=0)
    torch.testing.assert_close(usable.log_weights + usable.log_prob + usable.energies, -log_volume, atol=STORED, rtol=0)


@pytest.mark.parametrize("model", MODELS)
def test_log_prob_of_a_sample_is_the_one_it_came_with(model: str) -> None:
    generator = stirred(small(model))
    samples = generator.sample(100, torch.Generator().manual_seed(0))
    usable = samples.select(samples.log_weights > -math.inf)
    with torch.no_grad():
        result = generator.log_prob(usable.frames)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), usable.log_prob, atol=SINGLE, rtol=0)
    assert generator.log_prob(usable.frames[:6].reshape(2, 3, 22, 3)).shape == (2, 3)


def test_log_prob_in_double_precision() -> None:
    generator = stirred(small())
    single = generator.log_prob(frames()[:20])
    double = generator.double().log_prob(frames()[:20])
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=SINGLE, rtol=0)


def test_arrays_are_refused_by_name() -> None:
    generator, array = small(), frames()[:2].numpy()
    calls = (generator.log_prob, "frames"), (generator.log_density, "z"), (generator.coordinates, "x")
    for call, argument in (*calls, (generator.coordinates.inverse, "z"), (system_of().energy, "x")):
        with pytest.raises(ArgumentError, match=f"`{argument}` must be a tensor"):
            call(array)  # type: ignore[arg-type]


def test_samples_are_reproducible_in_parts() -> None:
    generator = small()
    first, second = (generator.sample(30, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.frames, second.frames) and torch.equal(first.log_weights, second.log_weights)
    assert float(first.weights.sum()) == pytest.approx(1.0)
    both = Samples.cat([first, second])
    assert len(both) == 60 and torch.equal(both.select(slice(30, 60)).frames, first.frames)
    with pytest.raises(ArgumentError, match="`count`"):
        generator.sample(0)


class _Scripted(torch.nn.Module):
    """A latent distribution that hands out the points that it was given."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points = points

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return self.points[:count]

    def log_prob(self, z: Tensor) -> Tensor:
        return -z.square().sum(-1) / 2


@pytest.mark.parametrize("part", ["bonds", "angles", "torsions"])
def test_points_that_no_frame_has_get_no_weight(part: str) -> None:
    """A bond below zero, an angle below zero, a torsion beyond its cut; the flow is the identity before training."""
    generator = small("rnvp").double()
    points = torch.zeros(3, 60, dtype=torch.float64)
    points[1, getattr(generator.coordinates.layout, part)[0]] = -1e3
    generator.flow.base = _Scripted(points)
    samples = generator.sample(3)
    assert (samples.log_weights == -math.inf).tolist() == [False, True, False]
    assert bool(samples.frames.isfinite().all()) and bool(samples.log_prob.isfinite().all())


def test_broken_energies_are_infinite_and_get_no_weight() -> None:
    generator = small()
    generator.potential.unregularised = lambda x: torch.tensor([math.nan, 1.0, -math.inf, math.inf]).double()
    samples = generator.sample(4)
    assert samples.energies.tolist() == [math.inf, 1.0, math.inf, math.inf]
    assert samples.log_weights.isfinite().tolist() == [False, True, False, False]
    assert samples.weights.tolist() == [0.0, 1.0, 0.0, 0.0]


def test_resampling_follows_the_weights() -> None:
    log_weights = torch.tensor([-math.inf, 0.0, math.log(3.0)]).double()
    stamps = torch.arange(3.0).reshape(3, 1, 1).expand(3, 2, 3)
    samples = Samples(stamps, log_weights, log_weights, log_weights)
    resampled = samples.resample(4000, torch.Generator().manual_seed(0))[:, 0, 0]
    assert set(resampled.tolist()) == {1.0, 2.0}
    assert float((resampled == 2).double().mean()) == pytest.approx(0.75, abs=SIGMAS * math.sqrt(0.75 * 0.25 / 4000))


# --- importance sampling of a molecule whose averages are known -------------------------------------------------------


def _butane(seed: int = 0) -> BoltzmannGenerator:
    """Coordinates scaled by the exact spreads of its harmonic bonds and angles."""
    system = butane()
    zmatrix = ZMatrix((0, 1, 2), ((3, 2, 1, 0),))
    loose = MixedCoordinates(zmatrix, reference=system.positions)
    draw = torch.Generator().manual_seed(1)
    x = system.positions + 0.003 * torch.randn(400, 4, 3, dtype=torch.float64, generator=draw)
    z = loose(x)[0].clone()
    z[:, -1] = torch.linspace(-3.1, 3.1, 400, dtype=torch.float64)
    return BoltzmannGenerator.create(system, loose.inverse(z)[0], model="spline", zmatrix=zmatrix, seed=seed)


@pytest.mark.slow
def test_training_by_energies_alone_and_reweighting_gives_the_exact_free_energy() -> None:
    generator = _butane()
    before = generator.sample(2000, torch.Generator().manual_seed(0))
    run = generator.fit_energy(steps=150, samples=256, learning_rate=3e-3)
    samples = generator.sample(20_000, torch.Generator().manual_seed(0))
    gained = [(1 / one.weights.square().sum() / len(one)) for one in (before, samples)]
    assert gained[1] > 0.4 > 2 * gained[0]
    assert run.finished and run.evaluations == 150 * 256 and run.broken == 0
    share = share_of(0.0, 2.4, generator.system.kT)
    result = generator.free_energy_difference(samples, (0, 1, 2, 3))
    assert result.error < 0.1
    assert abs(result.value - math.log((1 - share) / share)) < SIGMAS * result.error
    assert generator.free_energy_difference(samples) == result


@pytest.mark.slow
def test_forces_teach_what_likelihood_alone_does_not() -> None:
    """On a few weighted frames of one generator another learns, then from the forces at its own samples instead."""
    source = _butane()
    source.fit_energy(steps=100, samples=256, learning_rate=3e-3)
    data = source.sample(5000, torch.Generator().manual_seed(0))
    worth = []
    for forces in (False, True):
        generator = _butane(seed=1)
        generator.fit_likelihood(data.frames, data.weights, steps=100, batch=256, learning_rate=3e-3)
        if forces:
            run = generator.fit_forces(steps=200, learning_rate=3e-4)
        else:
            generator.fit_likelihood(data.frames, data.weights, steps=200, batch=256, learning_rate=3e-4)
        weights = generator.sample(20_000, torch.Generator().manual_seed(1)).weights
        worth.append(1 / float(weights.square().sum()) / len(weights))
    assert run.finished and run.evaluations == 200 * 256 and run.broken == 0
    assert worth[1] > 0.75 > worth[0], worth


# --- forces on frames -------------------------------------------------------------------------------------------------


def test_the_score_is_the_gradient_of_the_density_of_coordinates() -> None:
    generator = small("spline-p4inv").double()
    z = generator.coordinates(frames()[:6])[0]
    log_prob, score = generator.target(z)

    def log_density(z: Tensor) -> Tensor:
        x, log_volume = generator.coordinates.inverse(z)
        return log_volume - generator.system.energy(x)

    torch.testing.assert_close(log_prob, log_density(z))
    step = 1e-5
    for way in torch.randn(4, *z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(0)):
        slope = (log_density(z + step * way) - log_density(z - step * way)) / (2 * step)
        torch.testing.assert_close((score * way).sum(-1), slope, rtol=1e-6, atol=1e-3)
    assert generator.target(z.float())[1].dtype == torch.float32


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e25])
def test_there_is_no_score_where_the_energy_is_broken(value: float) -> None:
    generator = small("rnvp")
    true = generator.potential.unregularised
    generator.potential.unregularised = lambda x: true(x) + torch.where(torch.arange(len(x)) == 2, value, 0.0)
    log_prob, score = generator.target(generator.coordinates(frames()[:5])[0])
    assert score.isnan().any(-1).tolist() == (log_prob == -math.inf).tolist() == [False, False, True, False, False]


# --- the loss of energies ---------------------------------------------------------------------------------------------


def _flat(generator: BoltzmannGenerator, loss: Tensor) -> Tensor:
    values = [value for value in generator.parameters() if value.requires_grad]
    result = torch.autograd.grad(loss, values, allow_unused=True)
    return torch.cat([(torch.zeros_like(v) if g is None else g).flatten() for v, g in zip(values, result, strict=True)])


def test_the_loss_is_the_mean_of_u_less_volume_plus_log_q() -> None:
    generator = stirred(small()).double()
    latent = torch.randn(20, 60, dtype=torch.float64)
    loss, broken = generator.energy_loss(latent)
    z, _ = generator.flow.bijection.inverse(latent)
    x, log_volume = generator.coordinates.inverse(z)
    u = generator.system.energy(x)
    assert bool((u < LINEAR).all())  # otherwise the loss would bend it
    expected = (u - log_volume + generator.flow.log_prob(z)).mean()
    torch.testing.assert_close(loss, expected, atol=1e-8, rtol=1e-10)
    assert int(broken) == 0


@pytest.mark.parametrize("model", MODELS)
def test_the_losss_gradient_agrees_with_finite_differences(model: str) -> None:
    generator = stirred(small(model)).double()
    latent = generator.flow.base.sample(10, torch.Generator().manual_seed(0))
    gradient = _flat(generator, generator.energy_loss(latent)[0])
    values = [value for value in generator.parameters() if value.requires_grad]
    for seed in range(3):
        draw, step = torch.Generator().manual_seed(seed), 1e-6
        ways = [torch.randn(value.shape, generator=draw, dtype=value.dtype) for value in values]
        ways = [way / math.sqrt(len(gradient)) for way in ways]
        result = []
        for sign in (1, -2, 1):  # +step, -step, back
            with torch.no_grad():
                for value, way in zip(values, ways, strict=True):
                    value += sign * step * way
            result.append(float(generator.energy_loss(latent)[0].detach()))
        slope = (result[0] - result[1]) / (2 * step)
        exact = float(gradient @ torch.cat([way.flatten() for way in ways]))
        # the square of the step, and rounding of energies, which clashes of a spline's uniform torsions make large
        assert slope == pytest.approx(exact, rel=1e-4, abs=1e-4 * float(gradient.norm()) / math.sqrt(len(gradient)))


def test_single_precision_agrees_with_double() -> None:
    generator = stirred(small())
    latent = torch.randn(50, 60)
    loss, _ = generator.energy_loss(latent)
    single = _flat(generator, loss)
    exact_loss, _ = generator.double().energy_loss(latent.double())
    double = _flat(generator, exact_loss)
    assert float(loss.detach()) == pytest.approx(float(exact_loss.detach()), rel=1e-5)
    assert float((single.double() - double).norm() / double.norm()) < 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e25])
def test_a_broken_energy_is_counted_and_does_not_touch_the_others(value: float) -> None:
    """The gradient is that of the same loss with a constant in the broken one's place."""
    generator = stirred(small()).double()
    latent = torch.randn(8, 60, dtype=torch.float64)
    true = generator.potential.unregularised

    def breaks(x: Tensor) -> Tensor:
        u = true(x)
        return u * torch.where(torch.arange(len(u)) == 3, value * u.detach().sign(), 1.0)  # its gradient breaks, too

    def constant(x: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x)) == 3, 0.0, true(x))

    result = []
    for energy in (breaks, constant):
        generator.potential.unregularised = energy
        loss, broken = generator.energy_loss(latent)
        result.append((loss, int(broken), _flat(generator, loss)))
    (bad, one, gradient), (good, none, expected) = result
    assert (one, none) == (1, 0)
    torch.testing.assert_close(gradient, expected)
    top = LINEAR + math.log1p(LARGEST - LINEAR)
    torch.testing.assert_close(bad, good + top / 8)


def test_clashes_are_bounded_in_single_precision() -> None:
    generator = small()
    latent = torch.randn(4, 60)
    latent[0] *= 40
    loss, broken = generator.energy_loss(latent)
    assert bool(loss.isfinite()) and int(broken) <= 1
    assert bool(_flat(generator, loss).isfinite().all())


def test_energies_are_those_of_the_system() -> None:
    x = frames()[:5]
    torch.testing.assert_close(small().potential.unregularised(x), system_of().energy(x))
