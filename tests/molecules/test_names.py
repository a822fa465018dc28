"""Public names of the package, and those that have changed."""

from __future__ import annotations

import pytest
import torch

from p4torch import molecules
from p4torch.molecules import analysis


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Biased", "TorsionFlattening"),
        ("Langevin", "MALA"),
        ("Tempered", "ParallelTempering"),
        ("mirror_share", "wrong_chirality_share"),
    ],
)
def test_an_old_name_says_the_new_one(old: str, new: str) -> None:
    with pytest.raises(AttributeError, match=f"'{old}': it is called '{new}' now"):
        getattr(molecules, old)
    assert new in molecules.__all__ and hasattr(molecules, new)


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"module 'p4torch.molecules' has no attribute 'Unknown'$"):
        _ = molecules.Unknown  # type: ignore[attr-defined]


CHAINS = molecules.Chains(*(torch.zeros(2, 1, 3), *torch.zeros(3, 2), torch.zeros(1, 2)), None, 1.0)
DATA = molecules.ReferenceData(torch.zeros(2, 1, 3), *torch.zeros(3, 2), 300.0)


@pytest.mark.parametrize("made", [CHAINS, DATA])
def test_the_old_name_of_a_field_says_the_new_one(made: molecules.Chains | molecules.ReferenceData) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'walkers': it is called 'trajectory_ids' now"):
        _ = made.walkers  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="has no argument 'walkers': it is called 'trajectory_ids' now"):
        type(made)(walkers=made.trajectory_ids)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "name", ["compare_energies", "count_crossings", "free_energy_difference", "free_energy_profile"]
)
def test_the_old_name_of_an_argument_says_the_new_one(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}\(\) has no argument 'walkers': it is called 'trajectory_ids' now"):
        getattr(analysis, name)(torch.zeros(2), walkers=torch.zeros(2).long())
