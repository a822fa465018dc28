"""The whole volume element: importance sampling of a soft molecule gives the averages of quadrature and of MD."""

from __future__ import annotations

from collections.abc import Callable

import openmm
import pytest
import torch
from tests.molecules.coordinates import GAS_CONSTANT, run, simulation
from torch import Tensor

from p4torch.molecules import MixedCoordinates, ZMatrix
from p4torch.molecules.geometry import angle, bond

TEMPERATURE = 300.0
KT = GAS_CONSTANT * TEMPERATURE
#: Soft, so that volume elements matter: kJ/mol/nm² and kJ/mol/rad², lengths in nm and angles in rad.
BOND, ANGLE = (0.15, 1500.0), (1.9, 25.0)
SAMPLES = 200_000
#: Standard errors that a right average may be off by, and a wrong one must be.
RIGHT, WRONG = 4.5, 8.0


def soft_chain() -> openmm.System:
    system, bonds, angles = openmm.System(), openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for _ in range(4):
        system.addParticle(12.0)
    for i in range(3):
        bonds.addBond(i, i + 1, *BOND)
    for i in range(2):
        angles.addAngle(i, i + 1, i + 2, *ANGLE)
    system.addForce(bonds)
    system.addForce(angles)
    return system


def observables(x: Tensor) -> Tensor:
    """Bonds and angles `(..., 5)`: independent of each other, each with a density in one dimension."""
    a, b, c, d = x.unbind(-2)
    return torch.stack([bond(a, b), bond(b, c), bond(c, d), angle(a, b, c), angle(b, c, d)], -1)


def energy(x: Tensor) -> Tensor:
    """In kJ/mol."""
    seen = observables(x)
    centre = torch.tensor([BOND[0]] * 3 + [ANGLE[0]] * 2, dtype=torch.float64)
    stiffness = torch.tensor([BOND[1]] * 3 + [ANGLE[1]] * 2, dtype=torch.float64)
    return (stiffness * (seen - centre).square() / 2).sum(-1)


def exact() -> Tensor:
    """Averages `(5,)` by quadrature: densities r² e^(-u(r)/kT) and sin θ e^(-u(θ)/kT)."""
    r = torch.linspace(1e-6, 0.6, 100_001, dtype=torch.float64)
    theta = torch.linspace(0, torch.pi, 100_001, dtype=torch.float64)
    lengths = (2 * r.log() - BOND[1] * (r - BOND[0]).square() / (2 * KT)).softmax(0)
    angles = ((theta.sin() + 1e-300).log() - ANGLE[1] * (theta - ANGLE[0]).square() / (2 * KT)).softmax(0)
    return torch.stack([lengths @ r] * 3 + [angles @ theta] * 2)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Langevin dynamics."""
    context = simulation(soft_chain(), TEMPERATURE, step=0.002)
    start = [[0.0, 0.15, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.2, 0.1, 0.1]]
    context.setPositions(start)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    run(context, 1, 2000)
    return run(context, 8000, 50)


def sampled(frames: Tensor, log_volume: Callable[[MixedCoordinates, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Averages and standard errors `(5,)` of reweighted samples of a broad proposal."""
    coordinates = MixedCoordinates(ZMatrix((0, 1, 2), ((3, 2, 1, 0),)), frames)
    z = 1.4 * torch.randn(SAMPLES, 6, dtype=torch.float64)
    z[:, 5] = torch.pi * (2 * torch.rand(SAMPLES, dtype=torch.float64) - 1)
    log_proposal = -(z[:, :5] / 1.4).square().sum(-1) / 2
    x, logabsdet = coordinates.inverse(z)
    log_weights = -energy(x) / KT + log_volume(coordinates, x, logabsdet) - log_proposal
    weights = log_weights.masked_fill(coordinates.outside(z), -torch.inf).softmax(0)
    assert 1 / weights.square().sum() > SAMPLES / 20
    seen = observables(x)
    mean = weights @ seen
    return mean, (weights.square() @ (seen - mean).square()).sqrt()


def test_dynamics_has_the_exact_averages(frames: Tensor) -> None:
    blocks = observables(frames).reshape(40, 200, 5).mean(1)
    error = blocks.std(0) / 40**0.5
    assert ((blocks.mean(0) - exact()).abs() / error).max() < RIGHT


def test_importance_sampling_has_the_averages_of_dynamics(frames: Tensor) -> None:
    mean, error = sampled(frames, lambda coordinates, x, logabsdet: logabsdet)
    assert ((mean - exact()).abs() / error).max() < RIGHT
    blocks = observables(frames).reshape(40, 200, 5).mean(1)
    both = (error.square() + (blocks.std(0) / 40**0.5).square()).sqrt()
    assert ((mean - blocks.mean(0)).abs() / both).max() < RIGHT


def test_it_does_not_without_the_blocks_jacobian(frames: Tensor) -> None:
    def without(coordinates: MixedCoordinates, x: Tensor, logabsdet: Tensor) -> Tensor:
        block = x[:, :3] - x[:, :3].mean(1, keepdim=True)
        r = coordinates.inverse(torch.zeros(6, dtype=torch.float64))[0][:3]
        r = r - r.mean(0)
        m = (r * block).sum((-2, -1))[:, None, None] * torch.eye(3, dtype=torch.float64)
        m = m - torch.einsum("nai,aj->nij", block, r)
        return logabsdet - torch.linalg.det(m).abs().log()

    mean, error = sampled(frames, without)
    assert ((mean - exact()).abs() / error)[[0, 1, 3]].max() > WRONG


def test_it_does_not_without_the_other_atoms_volume(frames: Tensor) -> None:
    def without(coordinates: MixedCoordinates, x: Tensor, logabsdet: Tensor) -> Tensor:
        seen = observables(x)
        return logabsdet - 2 * seen[:, 2].log() - seen[:, 4].sin().log()

    mean, error = sampled(frames, without)
    assert ((mean - exact()).abs() / error)[[2, 4]].max() > WRONG
