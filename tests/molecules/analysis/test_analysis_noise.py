"""The noise baseline of harmonic energies, and of alanine dipeptide."""

import math
from pathlib import Path

import openmm
import pytest
import torch
from openmm import app, unit
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis import noise_baseline

PDB = Path(__file__).parents[3] / "src" / "p4torch" / "molecules" / "data" / "alanine-dipeptide.pdb"
STIFFNESS = 1e4  # kJ/mol/nm²
SIGMA = 0.004
PULL = 5  # errors that a mean may lie away
ROUNDING = 1e-9


def harmonic(frames: Tensor) -> Tensor:
    return STIFFNESS * (frames**2).sum((-1, -2)) / 2


def test_harmonic_modes_gain_half_k_sigma_squared() -> None:
    frames = 0.01 * torch.randn(5000, 4, 3, dtype=torch.float64)
    result = noise_baseline(harmonic, frames, SIGMA, 300.0, batch=999)
    expected = 12 * STIFFNESS * SIGMA**2 / 2
    variance = 12 * (STIFFNESS * SIGMA**2) ** 2 / 2 + STIFFNESS**2 * SIGMA**2 * 12 * 0.01**2
    assert abs(result.shift - expected) < PULL * math.sqrt(variance / 5000)
    assert result.noisy_mean - result.data_mean == result.shift
    assert result.data_mean == pytest.approx(float(harmonic(frames).mean()))
    assert result.in_kT(result.kT) == 1
    assert result.noisy_quantiles.diff().min() > 0
    assert float(result.data_quantiles[2]) == pytest.approx(float(harmonic(frames).median()), rel=1e-2)


def test_no_noise_changes_nothing_and_weights_count() -> None:
    frames = torch.zeros(3, 2, 3)
    frames[1] = 1.0
    result = noise_baseline(harmonic, frames, 0.0, weights=torch.tensor([1.0, 3.0, 0.0]))
    assert result.shift == 0
    assert result.data_mean == pytest.approx(0.75 * float(harmonic(frames)[1]))


def test_generators_repeat_and_batches_do_not_matter() -> None:
    frames = torch.randn(100, 2, 3)
    runs = [noise_baseline(harmonic, frames, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert runs[0].noisy_mean == runs[1].noisy_mean
    assert runs[0].noisy_mean != runs[2].noisy_mean


def test_alanine_dipeptide_gains_what_its_curvatures_say() -> None:
    """At the minimum, the mean gain is σ²/2 times the trace of the Hessian, to second order."""
    pdb = app.PDBFile(str(PDB))
    system = app.ForceField("amber99sbildn.xml", "amber96_obc.xml").createSystem(
        pdb.topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False
    )
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))

    def energy(frames: Tensor) -> Tensor:
        energies = []
        for frame in frames.double().numpy():
            context.setPositions(frame)
            state = context.getState(getEnergy=True)
            energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        return torch.tensor(energies, dtype=torch.float64)

    minimum = torch.tensor(pdb.positions.value_in_unit(unit.nanometer), dtype=torch.float64)
    step = 1e-4
    moves = step * torch.eye(66, dtype=torch.float64).reshape(66, 22, 3)
    curvatures = (energy(minimum + moves) + energy(minimum - moves) - 2 * energy(minimum[None])) / step**2
    small = SIGMA / 10
    result = noise_baseline(energy, minimum.expand(3000, 22, 3), small)
    assert result.shift == pytest.approx(float(curvatures.sum()) * small**2 / 2, rel=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: noise_baseline(harmonic, torch.zeros(0, 2, 3)), "`frames` .* not empty"),
        (lambda: noise_baseline(harmonic, torch.full((4, 2, 3), math.nan)), "`frames` .* 4 of 4 .* first at 0"),
        (lambda: noise_baseline(harmonic, torch.zeros(4, 2, 3), -0.1), "`sigma_nm`"),
        (lambda: noise_baseline(harmonic, torch.zeros(4, 2, 3), temperature_K=0), "`temperature_K`"),
        (lambda: noise_baseline(harmonic, torch.zeros(4, 2, 3), weights=torch.ones(5)), "`weights`"),
        (lambda: noise_baseline(lambda x: x[:, 0, 0] / 0, torch.zeros(4, 2, 3)), "`energy of frames` must be finite"),
        (lambda: noise_baseline(lambda x: x.sum(), torch.zeros(4, 2, 3)), "`energy`"),
    ],
)
def test_bad_input_names_the_argument(make: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()  # type: ignore[operator]
