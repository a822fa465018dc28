"""The force field where geometry has no derivative, or a frame no energy."""

from __future__ import annotations

import math

import openmm
import pytest
import torch
from tests.molecules.systems import shaken, system_of
from torch import Tensor

from p4torch.molecules.force_field import ForceField


def degenerate() -> tuple[openmm.System, Tensor]:
    """Four atoms with an angle and a torsion: ordinary; stretched out; folded; two atoms in one place."""
    system = openmm.System()
    for _ in range(4):
        system.addParticle(1.0)
    bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    bonds.addBond(0, 1, 0.15, 2e5)
    angles.addAngle(0, 1, 2, 1.9, 400.0)
    torsions.addTorsion(0, 1, 2, 3, 3, 0.0, 5.0)
    for force in (bonds, angles, torsions):
        system.addForce(force)
    ordinary = [[0.0, 0.1, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.2, 0.05, 0.1]]
    stretched = [[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.2, 0.0, 0.0], [0.3, 0.0, 0.0]]
    folded = [[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0], [0.1, 0.0, 0.0]]
    together = [[0.1, 0.0, 0.0], [0.1, 0.0, 0.0], [0.1, 0.0, 0.0], [0.3, 0.0, 0.0]]
    return system, torch.tensor([ordinary, stretched, folded, together], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_angles_and_torsions_are_finite(dtype: torch.dtype) -> None:
    system, x = degenerate()
    force_field, x = ForceField(system), x.to(dtype).requires_grad_()
    energy, gradient = force_field.energy_and_gradient(x)
    (once,) = torch.autograd.grad(force_field.energy(x).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(once.square().sum(), x)
    for value in (energy, gradient, once, twice, force_field.energy_reference(x)):
        assert value.isfinite().all()
    torch.testing.assert_close(once, gradient, rtol=1e-5, atol=1e-4)
    alone = force_field.energy_and_gradient(x[:1])
    torch.testing.assert_close((energy[:1], gradient[:1]), alone)


def test_a_nearly_straight_angle_is_as_precise_as_others() -> None:
    """(π - θ)² k/2 with θ0 = π: arccos would lose half of the digits."""
    system, _ = degenerate()
    for _ in range(2):
        system.removeForce(0)
    system.getForce(0).setTorsionParameters(0, 0, 1, 2, 3, 3, 0.0, 0.0)
    angles = openmm.HarmonicAngleForce()
    angles.addAngle(0, 1, 2, math.pi, 400.0)
    system.addForce(angles)
    bend = 1e-6
    x = torch.tensor([[-0.1, 0, 0], [0, 0, 0], [0.1 * math.cos(bend), 0.1 * math.sin(bend), 0], [0.2, 0.3, 0.1]])
    energy = ForceField(system).energy(x.double())
    torch.testing.assert_close(float(energy), 200 * bend**2, rtol=1e-5, atol=0)


def test_a_frame_without_an_energy_stays_alone() -> None:
    force_field, x = ForceField(system_of().openmm_system), shaken(system_of(), 3)
    expected = force_field.energy_and_gradient(x)
    x[1, 5] = x[1, 12]
    x[2, 3, 0] = math.nan
    energy, gradient = force_field.energy_and_gradient(x)
    assert not energy[1:].isfinite().any()
    torch.testing.assert_close((energy[0], gradient[0]), (expected[0][0], expected[1][0]))
