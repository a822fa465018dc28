"""The force field in PyTorch against OpenMM's Reference platform, and against itself."""

from __future__ import annotations

import copy
import pickle

import openmm
import pytest
import torch
from openmm import app
from tests.molecules.systems import shaken, system_of
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules import ForceField, MolecularSystem, OpenMMEnergy

#: Up to energies of 1e6 kJ/mol, in kJ/mol and kJ/mol/nm: what is asked of a replacement of OpenMM.
SAME_ENERGY, SAME_FORCE = 1e-4, 1e-3
HIGHEST = 1e6
#: Single precision, relative to the sum of the terms' absolute energies: charges cancel, their rounding does not.
SINGLE = 1e-5
#: The same formulas in another order, in double precision.
TWIN = 1e-9

#: At least five molecules: neutral and charged, rings, sulfur, 75 atoms; three force fields, two kinds of solvent.
PAIRS = [
    ("alanine-dipeptide", "amber99sbildn, obc"),
    ("proline-dipeptide", "amber96, obc1"),
    ("lysine-dipeptide", "amber99sbildn, obc"),
    ("aspartate-dipeptide", "amber14, obc2"),
    ("tryptophan-dipeptide", "amber14, gbn2"),
    ("cysteine-dipeptide", "amber14, obc2"),
    ("met-enkephalin", "amber99sbildn, obc"),
]


def perturbed(system: MolecularSystem, frames: int) -> Tensor:
    """Positions with noise of 0.001 to 0.05 nm, evenly in its logarithm."""
    noise = 1e-3 * 50 ** torch.rand(frames, 1, 1, dtype=torch.float64)
    return system.positions + noise * torch.randn(frames, system.atoms, 3, dtype=torch.float64)


def compare(system: MolecularSystem, frames: int) -> float:
    """Asserts that we agree; the highest energy that was compared."""
    x = perturbed(system, frames)
    force_field, oracle = ForceField(system.openmm_system), OpenMMEnergy(system.openmm_system, workers=0)
    (energy, gradient), (wanted, slopes) = force_field.energy_and_gradient(x), oracle.energy_and_gradient(x)
    usable = wanted.abs() < HIGHEST
    assert usable.float().mean() > 0.9
    assert (energy - wanted)[usable].abs().max() <= SAME_ENERGY
    assert (gradient - slopes)[usable].abs().max() <= SAME_FORCE
    rounded = x.float().double()
    exact, scale = force_field.energy(rounded), scale_of(force_field, rounded)
    single = force_field.energy(x.float()).double()
    assert ((single - exact).abs() / scale)[usable].max() <= SINGLE
    return float(wanted[usable].max())


def scale_of(force_field: ForceField, x: Tensor) -> Tensor:
    """Σ |E| over the terms."""
    return torch.stack([term.energy(x).abs() for term in force_field.terms]).sum(0)


@pytest.mark.parametrize(("name", "forcefield"), PAIRS)
def test_openmm_agrees(name: str, forcefield: str) -> None:
    compare(system_of(name, forcefield), 30)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "forcefield"), PAIRS[:4])
def test_openmm_agrees_on_a_thousand_frames(name: str, forcefield: str) -> None:
    assert compare(system_of(name, forcefield), 1000) > 1e4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["proline-dipeptide", "tryptophan-dipeptide", "met-enkephalin"])
def test_openmm_agrees_on_a_thousand_frames_of_larger_molecules(name: str) -> None:
    assert compare(system_of(name), 1000) > 1e4


@pytest.mark.parametrize(("name", "forcefield"), PAIRS)
def test_the_fast_path_is_its_readable_twin(name: str, forcefield: str) -> None:
    system = system_of(name, forcefield)
    force_field, x = ForceField(system.openmm_system), shaken(system, 5, 0.01)
    x.requires_grad_()
    fast, plain = force_field.energy(x), force_field.energy_reference(x)
    torch.testing.assert_close(fast, plain, rtol=TWIN, atol=TWIN)
    (slope,), (wanted,) = torch.autograd.grad(fast.sum(), x), torch.autograd.grad(plain.sum(), x)
    torch.testing.assert_close(slope, wanted, rtol=TWIN, atol=TWIN * float(wanted.abs().max()))


@pytest.mark.parametrize("forcefield", ["amber99sbildn, obc", "amber14, gbn2"])
def test_second_derivatives_are_those_of_the_forces(forcefield: str) -> None:
    system = system_of("cysteine-dipeptide" if "amber14" in forcefield else "alanine-dipeptide", forcefield)
    force_field = ForceField(system.openmm_system)
    x, v = shaken(system, 1), torch.randn(1, system.atoms, 3, dtype=torch.float64)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(force_field.energy(x).sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((slope * v).sum(), x)
    step = 1e-6
    with torch.no_grad():
        above, below = (force_field.energy_and_gradient(x + sign * step * v)[1] for sign in (1, -1))
    torch.testing.assert_close(product, (above - below) / (2 * step), rtol=1e-5, atol=1e-2)


def test_any_batch() -> None:
    system = system_of()
    force_field, x = ForceField(system.openmm_system), shaken(system_of(), 6)
    energy = force_field(x)
    torch.testing.assert_close(force_field(x.reshape(2, 3, 22, 3)), energy.reshape(2, 3))
    torch.testing.assert_close(force_field(x[0]), energy[0])
    assert force_field(x[:0]).shape == (0,)
    many = x.repeat(500, 1, 1)
    torch.testing.assert_close(force_field(many), energy.repeat(500))
    for wrong in (x[:, :21], x.to(torch.int64), x.half(), x[0, 0]):
        with pytest.raises(ArgumentError, match="`x` must be"):
            force_field(wrong)


def test_a_broken_frame_leaves_the_others_alone() -> None:
    system = system_of()
    force_field, x = ForceField(system.openmm_system), shaken(system_of(), 4)
    wanted, slopes = force_field.energy_and_gradient(x)
    broken = x.clone()
    broken[1, 3] = broken[1, 4]
    broken[2, 0, 0] = torch.nan
    broken.requires_grad_()
    energy = force_field.energy(broken)
    energy[[0, 3]].sum().backward()
    torch.testing.assert_close(energy[[0, 3]], wanted[[0, 3]])
    torch.testing.assert_close(broken.grad[[0, 3]], slopes[[0, 3]])  # type: ignore[index]
    assert not energy[2].isfinite()


def test_a_straight_angle_has_finite_forces() -> None:
    model, force = openmm.System(), openmm.HarmonicAngleForce()
    for _ in range(3):
        model.addParticle(1.0)
    force.addAngle(0, 1, 2, 1.9, 100.0)
    model.addForce(force)
    x = torch.tensor([[[-0.1, 0, 0], [0, 0, 0], [0.1, 0, 0]]], dtype=torch.float64)
    energy, gradient = ForceField(model).energy_and_gradient(x)
    assert float(energy) == pytest.approx(50 * (torch.pi - 1.9) ** 2)
    assert gradient.isfinite().all()


def test_copies_and_devices() -> None:
    system = system_of()
    force_field, x = ForceField(system.openmm_system), shaken(system_of(), 3)
    wanted = force_field(x)
    for other in (copy.deepcopy(force_field), pickle.loads(pickle.dumps(force_field)), force_field.float()):
        torch.testing.assert_close(other(x), wanted, rtol=0, atol=0)
    assert force_field(x.float()).dtype == torch.float32


@pytest.mark.cuda
def test_on_a_gpu() -> None:
    system = system_of()
    force_field, x = ForceField(system.openmm_system), shaken(system_of(), 10)
    wanted = force_field(x)
    torch.testing.assert_close(force_field.cuda()(x.cuda()).cpu(), wanted, rtol=TWIN, atol=TWIN)


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    system = system_of()
    force_field, x = ForceField(system.openmm_system), shaken(system_of(), 4).requires_grad_()
    energy = torch.compile(force_field, fullgraph=True)(x)
    torch.testing.assert_close(energy, force_field(x), rtol=TWIN, atol=TWIN)
    (slope,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(slope, force_field.energy_and_gradient(x)[1], rtol=1e-6, atol=1e-6)


def external() -> openmm.Force:
    force = openmm.CustomExternalForce("x^2")
    force.addParticle(0)
    return force


def cutoff() -> openmm.Force:
    force = openmm.NonbondedForce()
    for _ in range(2):
        force.addParticle(0.0, 0.1, 0.0)
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)
    return force


def solvent() -> openmm.Force:
    force = openmm.CustomGBForce()
    force.addEnergyTerm("x^2", openmm.CustomGBForce.SingleParticle)
    for _ in range(2):
        force.addParticle([])
    return force


@pytest.mark.parametrize(
    ("force", "name"),
    [
        (external(), "CustomExternalForce"),
        (cutoff(), "NonbondedForce"),
        (solvent(), "CustomGBForce"),
        (openmm.AndersenThermostat(300, 1), "AndersenThermostat"),
        (openmm.MonteCarloBarostat(1, 300), "MonteCarloBarostat"),
    ],
)
def test_unknown_forces_are_refused_by_name(force: openmm.Force, name: str) -> None:
    system = openmm.System()
    for _ in range(2):
        system.addParticle(1.0)
    system.addForce(force)
    with pytest.raises(ArgumentError, match=name):
        ForceField(system)


def test_constraints_are_refused() -> None:
    topology = system_of().topology
    system = app.ForceField("amber99sbildn.xml").createSystem(topology, constraints=app.HBonds)
    with pytest.raises(ArgumentError, match="constraint"):
        ForceField(system)
