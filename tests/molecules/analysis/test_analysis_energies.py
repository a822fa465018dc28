"""Energies of samples against data, with answers that are known."""

import math

import pytest
import torch

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis import compare_energies, weighted_quantile

SAMPLES = 20_000
PULL = 4.5  # errors that a right answer may lie away
SPREAD = 0.2  # relative, of a bootstrap error
REPEATS = 100
COVERAGE = (0.88, 1.0)  # of ± 2 errors of 100 repeats


def normal(samples: int = SAMPLES) -> torch.Tensor:
    return torch.randn(samples, dtype=torch.float64)


def test_shift_of_a_gaussian() -> None:
    data, samples = normal(), normal() + 0.5
    result = compare_energies(samples, data)
    assert result.threshold == float(data.max())
    assert abs(result.median_shift.value - 0.5) < PULL * result.median_shift.error
    assert result.mean_shift.value == pytest.approx(0.5, abs=PULL * result.mean_shift.error + 1e-3)
    assert result.mean_shift.error == pytest.approx(math.sqrt(2 / SAMPLES), rel=SPREAD)
    assert result.median_shift.error == pytest.approx(math.sqrt(math.pi / SAMPLES), rel=2 * SPREAD)


def test_enormous_energies_count_in_the_fraction_only() -> None:
    data = normal()
    samples = normal()[: SAMPLES // 2].clamp(max=float(data.max()))
    samples = torch.stack([samples, torch.full_like(samples, 1e12)]).T.flatten()
    samples[1] = math.inf
    result = compare_energies(samples, data)
    assert result.low_energy_fraction.value == pytest.approx(0.5)
    assert abs(result.mean_shift.value) < PULL * result.mean_shift.error
    assert math.isfinite(result.median_shift.value)


def test_quantile_moves_the_threshold_and_cuts_both_means() -> None:
    data = normal()
    result = compare_energies(normal(), data, quantile=0.9)
    assert result.threshold == pytest.approx(1.2816, abs=0.05)
    assert abs(result.low_energy_fraction.value - 0.9) < PULL * math.hypot(result.low_energy_fraction.error, 0.003)
    assert abs(result.mean_shift.value) < PULL * result.mean_shift.error


def test_weights_make_one_distribution_of_another() -> None:
    data, samples = normal(), normal() * 1.5
    log_weights = samples**2 * (1 / 1.5**2 - 1) / 2
    result = compare_energies(samples, data, weights=log_weights.exp())
    assert abs(result.mean_shift.value) < PULL * result.mean_shift.error
    assert abs(result.median_shift.value) < PULL * result.median_shift.error
    turned = compare_energies(data, samples, data_weights=log_weights.exp(), quantile=0.99)
    assert turned.threshold == pytest.approx(2.326, abs=0.15)


def test_errors_cover_what_they_promise() -> None:
    """Data with a memory of g = 19 frames, independent samples: the true shifts lie within ± 2 errors."""
    covered = torch.zeros(2)
    for number in range(REPEATS):
        data, step = torch.empty(6000, dtype=torch.float64), normal(6000) * math.sqrt(1 - 0.9**2)
        value = float(normal(1))
        for frame, random in enumerate(step.tolist()):
            value = 0.9 * value + random
            data[frame] = value
        result = compare_energies(normal(2000).clamp(max=float(data.max())) + 0.0, data, seed=number)
        shifts = (result.mean_shift, result.median_shift)
        covered += torch.tensor([abs(shift.value) < 2 * shift.error for shift in shifts])
    assert float(covered.min()) / REPEATS > COVERAGE[0], covered


def test_no_low_sample_leaves_the_mean_unsaid() -> None:
    result = compare_energies(torch.full((50,), 9.0), torch.linspace(0, 1, 50))
    assert result.low_energy_fraction.value == 0
    assert math.isnan(result.mean_shift.value)
    assert result.mean_shift.error == math.inf
    assert result.median_shift.value == pytest.approx(8.5, abs=0.02)


def test_weighted_quantiles() -> None:
    values = torch.tensor([4.0, 1.0, 3.0, 2.0, 9.0])
    levels = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert weighted_quantile(values, levels).tolist() == [1, 3, 9]
    assert weighted_quantile(values, levels, torch.tensor([2.0, 3, 0, 1, 0])).tolist() == [1, 1, 4]
    tenths = torch.arange(1, 11) / torch.tensor(10.0, dtype=torch.float64)
    assert weighted_quantile(torch.arange(10.0), tenths).tolist() == list(range(10))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: compare_energies(torch.zeros(0), torch.zeros(3)), "samples"),
        (lambda: compare_energies(torch.full((3,), math.nan), torch.zeros(3)), "samples"),
        (lambda: compare_energies(torch.full((3,), -math.inf), torch.zeros(3)), "samples"),
        (lambda: compare_energies(torch.zeros(3), torch.full((3,), math.inf)), "data"),
        (lambda: compare_energies(torch.zeros(3), torch.zeros(3), quantile=0.0), "quantile"),
        (lambda: compare_energies(torch.zeros(3), torch.zeros(3), weights=torch.zeros(3)), "weights"),
        (lambda: compare_energies(torch.zeros(3), torch.zeros(4), data_weights=torch.ones(3)), "data_weights"),
        (
            lambda: compare_energies(torch.zeros(3), torch.zeros(4), data_trajectory_ids=torch.ones(4)),
            "data_trajectory_ids",
        ),
        (lambda: weighted_quantile(torch.zeros(3), torch.tensor([1.1])), "levels"),
    ],
)
def test_bad_input_names_the_argument(make: object, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        make()  # type: ignore[operator]
