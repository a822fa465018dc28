"""What all functions of the analysis refuse, and how they say it."""

import math

import pytest
import torch

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.inputs import normalize_weights, series, thermal_energy, trajectory_index


def test_says_how_many_values_are_bad_and_which_is_first() -> None:
    values = torch.tensor([0.0, 1.0, math.nan, math.inf, 0.0])
    with pytest.raises(
        ArgumentError, match="`energies` must be finite, got 2 of 5 that are not finite, the first at 2"
    ):
        series(values, "energies")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.tensor([1.0, -1.0, -1.0]), "non-negative, got 2 of 3 that are negative, the first at 1"),
        (torch.zeros(3), "positive somewhere"),
        (torch.ones(2), "of length 3"),
        (torch.tensor([1.0, math.inf, 1.0]), "finite"),
        (torch.ones(3, 1), "shape"),
    ],
)
def test_refuses_weights(weights: torch.Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"`weights` must be {message}|`weights` .*{message}"):
        normalize_weights(weights, torch.zeros(3))


def test_huge_weights_do_not_overflow() -> None:
    assert normalize_weights(torch.tensor([1e308, 1e308], dtype=torch.float64), torch.zeros(2)).tolist() == [0.5, 0.5]


def test_walkers_are_renumbered() -> None:
    assert trajectory_index(torch.tensor([7, 3, 7]), torch.zeros(3)).tolist() == [1, 0, 1]
    with pytest.raises(ArgumentError, match="`trajectory_ids`"):
        trajectory_index(torch.zeros(3), torch.zeros(3))


def test_thermal_energy() -> None:
    assert thermal_energy(300.0) == pytest.approx(2.494338785445972)
    with pytest.raises(ArgumentError, match="`temperature_K`"):
        thermal_energy(-1.0)
