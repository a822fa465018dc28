"""Frames and trajectories of a user: those of this molecule pass, others are refused with the first difference."""

import mdtraj
import pytest
import torch
from tests.molecules.systems import MOLECULES, pdb_of, shaken, system_of

from p4torch.errors import ArgumentError
from p4torch.molecules.trajectory import check_frames, check_trajectory

SINGLE = 1e-6  # nm: trajectories hold float32


def _trajectory(name: str = "alanine-dipeptide", frames: int = 5) -> mdtraj.Trajectory:
    system = system_of(name)
    return mdtraj.Trajectory(shaken(system, frames).numpy(), system.mdtraj_topology.copy())


def test_whole_frames_pass() -> None:
    system = system_of()
    check_frames(shaken(system, 10).reshape(2, 5, 22, 3), system)
    check_frames(system.positions.float(), system)
    check_frames(torch.zeros(0, 22, 3), system)


def test_frames_of_another_molecule() -> None:
    message = r"`x` must be of shape \(..., 22, 3\), got \(4, 23, 3\)"
    with pytest.raises(ArgumentError, match=message):
        check_frames(shaken(system_of("cysteine-dipeptide"), 4), system_of())
    with pytest.raises(ArgumentError, match=r"floating-point"):
        check_frames(torch.zeros(1, 22, 3, dtype=torch.long), system_of())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_frames_that_are_not_finite_are_counted_and_the_first_is_named(value: float) -> None:
    system = system_of()
    x = shaken(system, 12)
    x[7, 3, 1] = value
    x[9, :, 0] = value
    for frames in (x, x.reshape(3, 4, 22, 3)):
        with pytest.raises(ArgumentError, match=r"`x` must be finite, got 2 frames .* the first frame 7"):
            check_frames(frames, system)


@pytest.mark.parametrize("name", MOLECULES)
def test_what_mdtraj_reads_of_the_same_file_passes(name: str) -> None:
    system = system_of(name)
    x = check_trajectory(mdtraj.load(str(pdb_of(name))), system)
    assert (x - system.positions).abs().max() < SINGLE


def test_a_trajectory_of_another_molecule() -> None:
    with pytest.raises(ArgumentError, match=r"`trajectory` must be of the 22 atoms of .*ACE-ALA-NME.*, got 23 atoms"):
        check_trajectory(_trajectory("cysteine-dipeptide"), system_of())


def test_the_first_atom_that_differs_is_named() -> None:
    trajectory = _trajectory()
    trajectory.topology.atom(10).name = "CX"
    trajectory.topology.atom(12).name = "CY"
    with pytest.raises(ArgumentError, match=r"with CB \(C\), CB of ALA 2 of chain A \(atom 10\), got CX \(C\)"):
        check_trajectory(trajectory, system_of())
    trajectory = _trajectory()
    trajectory.topology.atom(6).element = mdtraj.element.phosphorus
    with pytest.raises(ArgumentError, match=r"with N \(N\), .*\(atom 6\), got N \(P\) of ALA2 there"):
        check_trajectory(trajectory, system_of())


def test_a_trajectory_in_angstrom_or_out_of_order() -> None:
    trajectory = _trajectory()
    trajectory.xyz *= 10
    with pytest.raises(ArgumentError, match=r"in nm, whole, and in the system's order of atoms, got .* nm apart"):
        check_trajectory(trajectory, system_of())
    trajectory = _trajectory()
    trajectory.xyz = trajectory.xyz[:, ::-1].copy()
    with pytest.raises(ArgumentError, match=r"in nm, whole"):
        check_trajectory(trajectory, system_of())


def test_a_trajectory_without_frames_or_with_broken_ones() -> None:
    trajectory = _trajectory()
    with pytest.raises(ArgumentError, match=r"`trajectory` must be of at least one frame, got none"):
        check_trajectory(trajectory[:0], system_of())
    trajectory.xyz[3, 2, 1] = float("nan")
    with pytest.raises(ArgumentError, match=r"1 frames .* the first frame 3"):
        check_trajectory(trajectory, system_of())
