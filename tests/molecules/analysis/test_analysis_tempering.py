"""MBAR's free-energy difference of a harmonic oscillator at several temperatures."""

import math

import pymbar
import pytest
import torch

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis import tempering_free_energy_difference
from p4torch.molecules.analysis.inputs import GAS_CONSTANT

STIFFNESS = 40.0  # kJ/mol/nm²
TEMPERATURES = torch.tensor([300.0, 450.0, 700.0], dtype=torch.float64)
EDGE = 0.5  # nm: the region lies beyond it
FRAMES = 3000
PULL = 3.5  # errors that a right answer may lie away
COVERAGE = (0.86, 1.0)  # of ± 2 errors, of 50 repeats
SPREAD = 0.25  # relative, of MBAR's error, against the scatter of 50 repeats
ROUNDING = 1e-10


def exact(temperature: float) -> float:
    """−ln(P / (1 − P)) with P = erfc(a √(k / 2RT)) / 2."""
    share = math.erfc(EDGE * math.sqrt(STIFFNESS / (2 * GAS_CONSTANT * temperature))) / 2
    return math.log((1 - share) / share)


def oscillator() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Energies, states and whether a frame lies beyond the edge."""
    state = torch.arange(len(TEMPERATURES)).repeat_interleave(FRAMES)
    x = (GAS_CONSTANT * TEMPERATURES[state] / STIFFNESS).sqrt() * torch.randn(len(state), dtype=torch.float64)
    return STIFFNESS * x**2 / 2 - 1e5, state, x > EDGE


@pytest.mark.parametrize("temperature", [300.0, 350.0, 700.0])
def test_harmonic_oscillator(temperature: float) -> None:
    energies, state, beyond = oscillator()
    result = tempering_free_energy_difference(energies, TEMPERATURES, state, beyond, temperature)
    assert abs(result.value - exact(temperature)) < PULL * result.error
    assert result.error < 0.2


def test_errors_cover_what_they_promise() -> None:
    pulls, errors = [], []
    for _ in range(50):
        energies, state, beyond = oscillator()
        result = tempering_free_energy_difference(energies, TEMPERATURES, state, beyond, 300.0)
        pulls.append((result.value - exact(300.0)) / result.error)
        errors.append(result.error)
    pull = torch.tensor(pulls)
    assert float((pull.abs() < 2).double().mean()) > COVERAGE[0]
    assert float(pull.std()) == pytest.approx(1, abs=SPREAD)


def test_hot_frames_help() -> None:
    energies, state, beyond = oscillator()
    both = tempering_free_energy_difference(energies, TEMPERATURES, state, beyond, 300.0)
    cold = state == 0
    alone = tempering_free_energy_difference(energies[cold], TEMPERATURES[:1], state[cold], beyond[cold], 300.0)
    assert both.error < 0.6 * alone.error
    share = float(beyond[cold].double().mean())
    assert alone.value == pytest.approx(math.log((1 - share) / share))
    assert alone.error == pytest.approx(1 / math.sqrt(FRAMES * share * (1 - share)), rel=1e-3)


def test_reduced_potentials_are_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original = [], pymbar.MBAR
    monkeypatch.setattr(pymbar, "MBAR", lambda reduced, counts: seen.append(reduced) or original(reduced, counts))
    energies, state, beyond = oscillator()
    tempering_free_energy_difference(energies, TEMPERATURES, state, beyond, 300.0)
    expected = (energies - energies.min()) / (GAS_CONSTANT * TEMPERATURES[:, None])
    torch.testing.assert_close(torch.as_tensor(seen[0]), expected, rtol=ROUNDING, atol=0)


def test_memory_widens_the_error() -> None:
    energies, state, beyond = oscillator()
    one, four = (
        tempering_free_energy_difference(energies, TEMPERATURES, state, beyond, 300.0, inefficiency=g) for g in (1, 4)
    )
    assert four.error == pytest.approx(2 * one.error, rel=ROUNDING)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"energies": torch.tensor([math.nan, 0.0])}, "energies"),
        ({"temperatures_K": torch.tensor([-300.0])}, "temperatures_K"),
        ({"state_of_frame": torch.tensor([0, 1])}, "state_of_frame"),
        ({"state_of_frame": torch.zeros(2)}, "state_of_frame"),
        ({"in_region": torch.tensor([True, True])}, "in_region"),
        ({"in_region": torch.tensor([True, False, True])}, "in_region"),
        ({"temperature_K": 0.0}, "temperature_K"),
        ({"inefficiency": 0.5}, "inefficiency"),
    ],
)
def test_bad_input_names_the_argument(changes: dict[str, object], argument: str) -> None:
    good = {
        "energies": torch.zeros(2),
        "temperatures_K": torch.tensor([300.0]),
        "state_of_frame": torch.zeros(2).long(),
        "in_region": torch.tensor([True, False]),
        "temperature_K": 300.0,
    }
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        tempering_free_energy_difference(**(good | changes))  # type: ignore[arg-type]
