"""Torsion angles against MDTraj and against angles that are known, and arcs of the circle."""

import math
from pathlib import Path

import mdtraj
import pytest
import torch
from hypothesis import given, strategies as st

from p4torch.errors import ArgumentError
from p4torch.flows.monotone import wrapped
from p4torch.molecules.analysis import in_arc, torsion_angles
from p4torch.molecules.analysis.torsions import bin_index

SINGLE = 1e-5  # MDTraj computes in single precision
DOUBLE = 1e-12
PDB = Path(__file__).parents[3] / "src" / "p4torch" / "molecules" / "data" / "alanine-dipeptide.pdb"
ATOMS = torch.tensor([[4, 6, 8, 14], [6, 8, 14, 16]])  # φ and ψ of alanine dipeptide


def turned(angle: torch.Tensor) -> torch.Tensor:
    """Four atoms with a torsion of that angle, `(..., 4, 3)`."""
    zero = torch.zeros_like(angle)
    last = torch.stack([angle.cos(), angle.sin(), 1 + zero], -1)
    rest = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=angle.dtype)
    return torch.cat([rest.expand(*angle.shape, 3, 3), last.unsqueeze(-2)], -2)


def test_agrees_with_mdtraj() -> None:
    trajectory = mdtraj.load(str(PDB))
    trajectory.xyz = trajectory.xyz + 0.02 * torch.randn(50, 22, 3).numpy()
    ours = torsion_angles(torch.from_numpy(trajectory.xyz), ATOMS)
    theirs = torch.from_numpy(mdtraj.compute_dihedrals(trajectory, ATOMS.numpy(), periodic=False))
    assert ours.shape == (50, 2)
    assert float(wrapped(ours - theirs).abs().max()) < SINGLE


@given(angle=st.floats(-math.pi, math.pi))
def test_finds_the_angle_that_was_made(angle: float) -> None:
    (result,) = torsion_angles(turned(torch.tensor(angle, dtype=torch.float64)), torch.tensor([[0, 1, 2, 3]]))
    assert abs(float(wrapped(result - angle))) < DOUBLE


@pytest.mark.parametrize("angle", [1e-9, -1e-9, math.pi - 1e-9])
def test_small_angles_keep_their_digits(angle: float) -> None:
    (result,) = torsion_angles(turned(torch.tensor(angle, dtype=torch.float64)), torch.tensor([[0, 1, 2, 3]]))
    assert abs(float(result) - angle) < DOUBLE * 1e-3


def test_atoms_on_a_line_give_zero() -> None:
    frames = torch.arange(4.0)[:, None] * torch.tensor([1.0, 0, 0])
    assert torsion_angles(frames, torch.tensor([[0, 1, 2, 3]])).tolist() == [0]


def test_arcs() -> None:
    angles = torch.tensor([-3.0, -0.1, 0.0, 1.0, 2.4, 3.0])
    assert in_arc(angles, (0.0, 2.4)).tolist() == [False, False, True, True, False, False]
    assert in_arc(angles, (2.4, 0.0)).tolist() == [True, True, False, False, True, True]
    assert in_arc(angles, (2.9, -2.9)).tolist() == [True, False, False, False, False, True]
    assert torch.equal(in_arc(angles + 2 * math.pi, (0.5, 2.0)), in_arc(angles, (0.5, 2.0)))


@given(angle=st.floats(-100, 100), bins=st.integers(1, 200))
def test_every_angle_has_a_bin(angle: float, bins: int) -> None:
    assert 0 <= int(bin_index(torch.tensor([angle], dtype=torch.float64), bins)) < bins


@pytest.mark.parametrize("arc", [(1.0, 1.0), (0.0, 2 * math.pi), (0.0, math.nan), (-4.0, 4.0)])
def test_refuses_arcs_that_are_none(arc: tuple[float, float]) -> None:
    with pytest.raises(ArgumentError, match="`region`"):
        in_arc(torch.zeros(1), arc)


@pytest.mark.parametrize(
    ("frames", "atoms", "message"),
    [
        (torch.zeros(0, 4, 3), [[0, 1, 2, 3]], "`frames` must be of shape .* not empty"),
        (torch.zeros(4, 2), [[0, 1, 2, 3]], "`frames` must be of shape"),
        (torch.zeros(1, 4, 3), [[0, 1, 2]], "`atoms` must be integers of shape"),
        (torch.zeros(1, 4, 3), [[0, 1, 2, 4]], r"`atoms` must be in 0 \.\.\. 3"),
        (torch.tensor([0.0, math.nan, math.inf]).repeat_interleave(12).reshape(3, 4, 3), [[0, 1, 2, 3]], "2 of 3"),
    ],
)
def test_bad_input_names_the_argument(frames: torch.Tensor, atoms: list[list[int]], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        torsion_angles(frames, torch.tensor(atoms))
