"""Free energies of distributions and of chains that are known, and whether their errors are true."""

import math

import pytest
import torch
from tests.molecules.analysis.chains import TwoStates

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis import free_energy_difference, free_energy_profile

CHAIN = TwoStates(up=0.01, down=0.03)
FRAMES, REPEATS = 8000, 200
COVERAGE = (0.89, 0.99)  # of ± 2 errors, 0.954 if all were exact; 200 repeats scatter by 0.015
MEAN_ERROR = 0.12  # relative, of the mean bootstrap error: 5 % are missed by blocks of 5 g
ROUNDING = 1e-10


def test_exact_counts() -> None:
    angles = torch.tensor([1.0, 1.0, 1.0, -1.0, 3.0, -3.0] * 10)
    assert free_energy_difference(angles).value == pytest.approx(0, abs=ROUNDING)
    assert free_energy_difference(angles, other=(-2.0, 0.0)).value == pytest.approx(-math.log(3))
    weights = torch.tensor([1.0, 0, 0, 2, 2, 0] * 10)
    assert free_energy_difference(angles, weights=weights).value == pytest.approx(math.log(4))


def test_errors_cover_what_they_promise() -> None:
    """Of 200 chains, the true difference lies within ± 2 errors for about 95 %."""
    estimates = [
        free_energy_difference(angles, seed=number) for number, angles in enumerate(CHAIN.angles(FRAMES, REPEATS))
    ]
    errors = torch.tensor([estimate.error for estimate in estimates])
    misses = torch.tensor([estimate.value - CHAIN.difference for estimate in estimates])
    covered = float((misses.abs() < 2 * errors).double().mean())
    assert COVERAGE[0] < covered < COVERAGE[1], covered
    assert float(errors.mean()) == pytest.approx(CHAIN.error(FRAMES), rel=MEAN_ERROR)
    assert float(misses.std()) == pytest.approx(CHAIN.error(FRAMES), rel=MEAN_ERROR + 2 / math.sqrt(2 * REPEATS))


def test_walkers_are_apart_and_may_be_interleaved() -> None:
    walks = CHAIN.angles(FRAMES, 4)
    trajectory_ids = torch.arange(4)[:, None].expand_as(walks)
    behind = free_energy_difference(walks.flatten(), trajectory_ids=trajectory_ids.flatten())
    beside = free_energy_difference(walks.T.flatten(), trajectory_ids=trajectory_ids.T.flatten())
    assert behind == beside
    assert behind.error == pytest.approx(CHAIN.error(4 * FRAMES), rel=3 * MEAN_ERROR)


def test_reweighting_finds_the_unbiased_difference() -> None:
    """A chain with a bias of 1 kT on its second state, weighted back: value and error are those of the biased one."""
    biased = TwoStates(up=0.02, down=0.02 * math.exp(-0.5))
    angles = biased.angles(20_000, 1)[0]
    weights = torch.where(angles > 0, math.exp(-1.0), 1.0)
    result = free_energy_difference(angles, weights=weights)
    assert abs(result.value - (biased.difference + 1)) < 4 * result.error
    assert result.error == pytest.approx(free_energy_difference(angles).error, rel=ROUNDING)


def test_seeds_repeat() -> None:
    angles = CHAIN.angles(FRAMES, 1)[0]
    assert free_energy_difference(angles, seed=3) == free_energy_difference(angles, seed=3)
    assert free_energy_difference(angles, seed=3).error != free_energy_difference(angles, seed=4).error


def test_a_region_seen_once_has_an_infinite_error() -> None:
    angles = torch.full((1000,), -1.0)
    angles[500] = 1.0
    result = free_energy_difference(angles)
    assert result.value == pytest.approx(math.log(999))
    assert result.error == math.inf


def test_profile_of_a_known_potential() -> None:
    """Of p(φ) ∝ exp(κ cos φ), the von Mises distribution, F = κ (1 − cos φ), within its errors."""
    concentration, bins = 1.5, 32
    angles = torch.distributions.VonMises(torch.tensor(0.0).double(), torch.tensor(concentration).double()).sample(
        (200_000,)
    )
    profile = free_energy_profile(angles, bins)
    fine = torch.linspace(-math.pi, math.pi, bins * 100 + 1, dtype=torch.float64)
    mass = (concentration * (fine[1:] + fine[:-1]).div(2).cos()).exp().reshape(bins, 100).mean(1)
    exact = -mass.log() + mass.max().log()
    pull = (profile.free_energy - exact) / profile.error
    pull = pull - pull.mean()
    assert float(profile.free_energy.min()) == 0
    assert float(pull.abs().max()) < 5
    assert float(pull.std()) == pytest.approx(1, abs=0.5)
    counts = mass / mass.sum() * len(angles)
    assert torch.allclose(profile.error, ((1 - counts / len(angles)) / counts).sqrt(), rtol=3 * MEAN_ERROR)


def test_profile_knows_weights_and_empty_bins() -> None:
    angles = torch.tensor([-2.0, 2.0] * 500)
    profile = free_energy_profile(angles, bins=4, weights=torch.tensor([1.0, math.e] * 500))
    assert profile.free_energy.tolist() == pytest.approx([1.0, math.inf, math.inf, 0.0])
    assert profile.error[[1, 2]].tolist() == [math.inf, math.inf]
    assert profile.centres.tolist() == pytest.approx([-0.75 * math.pi, -0.25 * math.pi, 0.25 * math.pi, 0.75 * math.pi])


def test_profile_of_a_chain_has_the_error_of_its_memory() -> None:
    angles = CHAIN.angles(FRAMES, 20)
    trajectory_ids = torch.arange(20)[:, None].expand_as(angles)
    profile = free_energy_profile(angles.flatten(), bins=2, trajectory_ids=trajectory_ids.flatten())
    share_error = CHAIN.error(20 * FRAMES) * (1 - CHAIN.share)
    assert float(profile.error[1]) == pytest.approx(share_error, rel=2 * MEAN_ERROR)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: free_energy_difference(torch.zeros(0)), "`angles`"),
        (lambda: free_energy_difference(torch.full((9,), -1.0)), "`region` must be a region with frames"),
        (lambda: free_energy_difference(torch.full((9,), 1.0)), "`other` must be a region with frames"),
        (lambda: free_energy_difference(torch.full((9,), 1.0), (0, 2), (0.5, 3)), "`other` must be apart"),
        (lambda: free_energy_difference(torch.ones(9), trajectory_ids=torch.zeros(8).long()), "`trajectory_ids`"),
        (lambda: free_energy_difference(torch.ones(9), weights=-torch.ones(9)), "`weights`"),
        (lambda: free_energy_difference(torch.tensor([1.0, -1.0] * 9), replicates=1), "`replicates`"),
        (lambda: free_energy_profile(torch.tensor([math.nan, 0.0])), "`angles` must be finite, got 1 of 2"),
        (lambda: free_energy_profile(torch.zeros(9), bins=1), "`bins`"),
    ],
)
def test_bad_input_names_the_argument(make: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()  # type: ignore[operator]
