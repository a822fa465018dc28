"""Bonds, angles and torsions against MDTraj, and placing against measuring."""

import math

import mdtraj
import numpy as np
import torch
from hypothesis import given, strategies as st
from tests.molecules.coordinates import md_frames, pdb

from p4torch.molecules.geometry import LEAST_LENGTH, angle, bond, degenerate, log_volume, place, see, torsion

#: MDTraj computes in single precision.
SINGLE = 1e-5

#: Some ten operations in double precision on numbers of order 1.
ROUNDING = 1e-12

lengths = st.floats(0.05, 1.0)
polar = st.floats(0.05, math.pi - 0.05)
around = st.floats(-3.1, 3.1)


def test_agrees_with_mdtraj() -> None:
    frames = md_frames("alanine-dipeptide")
    trajectory = mdtraj.Trajectory(frames.numpy(), mdtraj.Topology.from_openmm(pdb("alanine-dipeptide").topology))
    quadruples = np.array([[4, 6, 8, 14], [6, 8, 14, 16], [3, 1, 4, 0]])
    a, b, c, d = frames[:, quadruples.T].unbind(1)
    for ours, theirs in (
        (bond(c, d), mdtraj.compute_distances(trajectory, quadruples[:, 2:])),
        (angle(b, c, d), mdtraj.compute_angles(trajectory, quadruples[:, 1:])),
    ):
        torch.testing.assert_close(ours, torch.from_numpy(theirs).double(), atol=SINGLE, rtol=0)
    turned = torsion(a, b, c, d) - torch.from_numpy(mdtraj.compute_dihedrals(trajectory, quadruples)).double()
    assert float((1 - turned.cos()).abs().max()) < SINGLE


@given(lengths, polar, around)
def test_a_placed_atom_is_seen_where_it_was_put(r: float, theta: float, phi: float) -> None:
    a, b, c = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = [torch.tensor(value, dtype=torch.float64) for value in (r, theta, phi)]
    seen = see(a, b, c, place(a, b, c, *wanted))
    for result, value in zip(seen, wanted, strict=False):
        assert abs(float(result - value)) < ROUNDING / LEAST_LENGTH**0.5
    assert abs(float(seen.log_volume - log_volume(*wanted[:2]))) < ROUNDING / LEAST_LENGTH**0.5


def test_components_may_lie_along_any_dimension() -> None:
    points = torch.randn(4, 5, 3, dtype=torch.float64)
    last, first = see(*points), see(*points.movedim(-1, 1), dim=0)
    for left, right in zip(last, first, strict=True):
        torch.testing.assert_close(left, right, atol=ROUNDING, rtol=0)


def test_log_volume_is_the_jacobian_of_placing() -> None:
    a, b, c = torch.randn(3, 3, dtype=torch.float64)
    values = torch.tensor([0.3, 2.0, -1.0], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: place(a, b, c, *v), values)
    assert abs(float(torch.linalg.slogdet(jacobian)[1] - log_volume(*values[:2]))) < ROUNDING


def test_what_is_undefined_is_flagged_and_finite() -> None:
    a, b, c = torch.tensor([[0.0, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    cases = [(a, b, c, c), (a, b, c, c + (c - b)), (b - (c - b), b, c, a), (a, c, c, b), (a, b, c, a + 1)]
    points = [torch.stack(column).requires_grad_() for column in zip(*cases, strict=True)]
    assert degenerate(*points).tolist() == [True, True, True, True, False]
    seen = torch.stack(list(see(*points)))
    assert bool(seen.isfinite().all())
    for gradient in torch.autograd.grad(seen.sum(), points):
        assert bool(gradient.isfinite().all())
