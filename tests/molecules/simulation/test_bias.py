"""The bias on torsions: the same for us and for OpenMM, flat where it should be, scaled to the wanted ESS."""

from __future__ import annotations

import math

import openmm
import pytest
import torch

from p4torch.molecules import MolecularSystem
from p4torch.molecules.simulation.bias import GROUP, TorsionBias

#: OpenMM's Reference platform and ours both count in double precision, by different formulas.
SAME_ENERGY = 1e-9
#: Six Fourier terms and bins of 5 degrees cannot follow a histogram of 200,000 samples any closer, in kT.
FOURIER_NOISE = 0.15
#: Of an effective sample size, as a share: the grid of 72 bins against samples.
GRID_ESS = 0.02

KT = 2.5
PHI_PSI = ((4, 6, 8, 14), (6, 8, 14, 16))


def test_openmm_has_the_same_energy() -> None:
    system = MolecularSystem.alanine_dipeptide()
    bias = TorsionBias(PHI_PSI, torch.randn(2, 12, dtype=torch.float64))
    model = openmm.System()
    for _ in range(system.atoms):
        model.addParticle(1.0)
    force = TorsionBias.zero(PHI_PSI).force()
    model.addForce(force)
    context = openmm.Context(model, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference"))
    bias.apply(force, context)
    for _ in range(5):
        frame = system.positions + 0.02 * torch.randn(system.atoms, 3, dtype=torch.float64)
        context.setPositions(frame.numpy())
        theirs = context.getState(getEnergy=True, groups={GROUP}).getPotentialEnergy()._value
        ours = float(bias.energy(bias.angles(frame)))
        assert ours == pytest.approx(theirs, abs=SAME_ENERGY)


def test_a_bias_flattens_what_it_saw() -> None:
    """Samples of p ∝ exp(1.5 cos θ + sin 2θ): the bias is kT ln p but for a constant."""
    grid = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:-1]
    log_p = 1.5 * grid.cos() + (2 * grid).sin()
    angles = grid[torch.multinomial(log_p.exp(), 200_000, replacement=True)].unsqueeze(-1)
    bias = TorsionBias.zero(((0, 1, 2, 3),)).flattened(angles, KT, gain=1.0)
    result = bias.energy(grid.unsqueeze(-1)) / KT
    often = log_p > log_p.max() - 2.5  # where it is rare, the share that is spread evenly shows
    off = (result - log_p)[often]
    assert (off - off.mean()).abs().max() < FOURIER_NOISE
    half = TorsionBias.zero(((0, 1, 2, 3),)).flattened(angles, KT, gain=0.5)
    torch.testing.assert_close(half.coefficients, bias.coefficients / 2, rtol=0, atol=1e-6)  # they are rounded


@pytest.mark.parametrize("wanted", [0.2, 0.5, 0.8])
def test_a_scaled_bias_keeps_the_effective_sample_size(wanted: float) -> None:
    coefficients = torch.zeros(2, 12, dtype=torch.float64)
    coefficients[0, 0], coefficients[1, 3] = 3 * KT, 2 * KT
    full = TorsionBias(((0, 1, 2, 3), (1, 2, 3, 4)), coefficients)
    scaled = full.scaled_to_ess(KT, wanted)
    strength = float(scaled.coefficients[0, 0] / coefficients[0, 0])
    assert 0 < strength < 1
    grid = (torch.arange(500, dtype=torch.float64) + 0.5) / 500 * 2 * math.pi - math.pi
    size = 1.0
    for row in coefficients:  # p ∝ e^(V/kT), sampled with weights e^(αV/kT)
        log_p = TorsionBias(((0, 1, 2, 3),), row[None]).energy(grid[:, None]) / KT
        sampled = ((1 - strength) * log_p).softmax(0)
        weights = (strength * log_p).exp()
        size *= float((sampled * weights).sum() ** 2 / (sampled * weights.square()).sum())
    assert size == pytest.approx(wanted, abs=GRID_ESS)


def test_a_weak_bias_is_left_as_it_is() -> None:
    coefficients = torch.full((1, 12), 0.01, dtype=torch.float64)
    scaled = TorsionBias(((0, 1, 2, 3),), coefficients).scaled_to_ess(KT, 0.4)
    torch.testing.assert_close(scaled.coefficients, coefficients)
