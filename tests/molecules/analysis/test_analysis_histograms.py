"""Histograms and distances between them, on cases whose answers are known."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis import (
    Histogram,
    energy_histogram,
    kl_divergence,
    ramachandran_histogram,
    total_variation,
)

ROUNDING = 1e-12
BINNING = 0.02  # of 200,000 samples in 60 bins, against the continuous formulas
EDGES = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)


def histogram(*probabilities: float) -> Histogram:
    return Histogram(torch.tensor(probabilities, dtype=torch.float64), torch.arange(len(probabilities) + 1.0))


def test_ramachandran_counts_weighs_and_wraps() -> None:
    phi = torch.tensor([-3.0, 3.0, 3.0, math.pi])
    psi = torch.tensor([0.1, -0.1, -0.1, 0.1])
    result = ramachandran_histogram(phi, psi, bins=2, weights=torch.tensor([1.0, 2, 3, 4]))
    assert torch.allclose(result.probabilities, torch.tensor([[0, 0.5], [0.5, 0]], dtype=torch.float64))
    assert result.edges.tolist() == [-math.pi, 0, math.pi]
    assert float((result.density * math.pi**2).sum()) == pytest.approx(1)
    assert ramachandran_histogram(phi, psi).probabilities.shape == (64, 64)


def test_integer_weights_are_repetitions() -> None:
    phi, psi = (6 * torch.rand(100) - 3 for _ in range(2))
    times = torch.randint(0, 5, (100,))
    weighted = ramachandran_histogram(phi, psi, 8, times)
    repeated = ramachandran_histogram(phi.repeat_interleave(times), psi.repeat_interleave(times), 8)
    assert total_variation(weighted, repeated) < ROUNDING


def test_energy_histogram_keeps_the_share_of_what_lies_outside() -> None:
    energies = torch.tensor([-1.0, 0.0, 0.5, 1.0, 3.0, 4.0, 5.0, 2.5])
    assert energy_histogram(energies, EDGES).probabilities.tolist() == [2 / 8, 1 / 8, 2 / 8]


def test_known_distances() -> None:
    p, q = histogram(0.5, 0.5, 0), histogram(0.25, 0.25, 0.5)
    assert total_variation(p, q) == pytest.approx(0.5)
    assert total_variation(p, histogram(0, 0, 1)) == pytest.approx(1)
    assert kl_divergence(p, q, smoothing=1e-12) == pytest.approx(math.log(2))
    assert kl_divergence(p, p) == 0


def test_smoothing_bounds_the_price_of_an_empty_bin() -> None:
    smoothing = 1e-3
    result = kl_divergence(histogram(1, 0), histogram(0, 1), smoothing)
    half = smoothing / 2
    assert result == pytest.approx((1 - half) * math.log((1 - half) / half) + half * math.log(half / (1 - half)))
    assert result < math.log(2 / smoothing)


@pytest.mark.parametrize("shift", [0.3, 1.0, 2.0])
def test_shifted_gaussians(shift: float) -> None:
    """Of N(0, 1) and N(m, 1), TV is erf(m / √8) and KL is m² / 2."""
    edges = torch.linspace(-6, 6 + shift, 61)
    p, q = (energy_histogram(torch.randn(200_000) + mean, edges) for mean in (0, shift))
    assert total_variation(p, q) == pytest.approx(math.erf(shift / math.sqrt(8)), abs=BINNING)
    assert kl_divergence(p, q) == pytest.approx(shift**2 / 2, abs=BINNING * (1 + shift**2))


masses = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda values: sum(values) > 1e-6)


@given(first=masses, second=masses)
def test_distances_are_distances(first: list[float], second: list[float]) -> None:
    p, q = (histogram(*(value / sum(values) for value in values)) for values in (first, second))
    assert kl_divergence(p, q) >= 0
    assert math.isfinite(kl_divergence(p, q))
    assert 0 <= total_variation(p, q) <= 1 + ROUNDING
    assert total_variation(p, q) == total_variation(q, p)
    assert kl_divergence(p, q) + 1e-4 >= 2 * total_variation(p, q) ** 2, "Pinsker's inequality, less the smoothing"


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: ramachandran_histogram(torch.zeros(0), torch.zeros(0)), "phi"),
        (lambda: ramachandran_histogram(torch.zeros(3), torch.zeros(4)), "psi"),
        (lambda: ramachandran_histogram(torch.zeros(3), torch.zeros(3), bins=0), "bins"),
        (lambda: ramachandran_histogram(torch.zeros(3), torch.zeros(3), weights=torch.ones(2)), "weights"),
        (lambda: energy_histogram(torch.zeros(3), torch.tensor([1.0, 1.0])), "edges"),
        (lambda: energy_histogram(torch.full((3,), math.nan), EDGES), "energies"),
        (lambda: total_variation(histogram(1, 0), histogram(1, 0, 0)), "q"),
        (lambda: kl_divergence(histogram(1, 0), histogram(1, 0), smoothing=0), "smoothing"),
        (lambda: kl_divergence(histogram(1, 0), histogram(0, 0)), "q"),
    ],
)
def test_bad_input_names_the_argument(make: object, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        make()  # type: ignore[operator]
