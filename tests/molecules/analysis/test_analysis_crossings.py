"""Crossings counted on walks whose crossings are known."""

import math

import pytest
import torch
from tests.molecules.analysis.chains import TwoStates

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis import count_crossings


def test_only_a_change_of_cores_is_a_crossing() -> None:
    there_and_back = torch.tensor([-1.0, 0.1, -0.1, 0.2, -1.0])
    over_zero = torch.tensor([-1.0, -0.1, 0.1, 1.0])
    over_pi = torch.tensor([-2.5, -3.1, 3.1, 3.0, 2.0])
    round_the_back = torch.tensor([-2.5, 3.1, -3.1, -2.0])
    for walk, crossings, changes in (
        (there_and_back, 0, 4),
        (over_zero, 1, 1),
        (over_pi, 1, 1),
        (round_the_back, 0, 2),
    ):
        result = count_crossings(walk)
        assert result.between_cores.tolist() == [crossings]
        assert result.sign_changes.tolist() == [changes]


def test_angles_are_taken_on_the_circle() -> None:
    walk = torch.tensor([-1.0, 1.0, -1.0]) + 2 * math.pi
    assert count_crossings(walk).between_cores.tolist() == [2]
    assert count_crossings(walk).sign_changes.tolist() == [2]


def test_walkers_are_apart_and_may_be_interleaved() -> None:
    walks = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -1.0, 0.0, 1.0]])
    trajectory_ids = torch.tensor([[4], [5], [8]]).expand_as(walks)
    for turn in (lambda x: x, lambda x: x.T):
        result = count_crossings(turn(walks).flatten(), turn(trajectory_ids).flatten())
        assert result.between_cores.tolist() == [2, 0, 1]
        assert result.sign_changes.tolist() == [2, 0, 1]


def test_a_chain_crosses_as_often_as_it_must() -> None:
    chain, frames = TwoStates(up=0.02, down=0.05), 100_000
    expected = 2 * frames * chain.share * chain.down
    result = int(count_crossings(chain.angles(frames, 1)[0]).between_cores)
    assert abs(result - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: count_crossings(torch.zeros(0)), "phi"),
        (lambda: count_crossings(torch.tensor([math.inf])), "phi"),
        (lambda: count_crossings(torch.zeros(3), torch.zeros(2).long()), "trajectory_ids"),
        (lambda: count_crossings(torch.zeros(3), positive=(0.0, 1.0), negative=(0.5, 2.0)), "negative"),
        (lambda: count_crossings(torch.zeros(3), positive=(0.0, 0.0)), "positive"),
    ],
)
def test_bad_input_names_the_argument(make: object, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        make()  # type: ignore[operator]
