"""The force field in PyTorch against OpenMM's Reference platform, its own reference, and finite differences."""

from __future__ import annotations

import copy
import math

import openmm
import pytest
import torch
from hypothesis import given, strategies as st
from tests.molecules.systems import FORCE_FIELDS, MOLECULES, shaken, system_of
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules import force_field as module
from p4torch.molecules.force_field import ForceField
from p4torch.molecules.openmm_energy import OpenMMEnergy

#: What two orders of the same float64 sums may differ by, in kJ/mol and kJ/mol/nm, at energies up to HIGHEST.
ENERGY, GRADIENT, HIGHEST = 1e-4, 1e-3, 1e6
#: Relative to max(1, largest): two float64 orders of summation.
ROUNDING = 1e-11
#: Of the float32 energy: relative to the sum of the sizes of its terms, whose differences it is.
SINGLE = 1e-5
#: Noise in nm: from what thermal motion is to what pushes atoms into each other.
NOISE = (1e-3, 0.05)

SMALL = ("amber99sbildn, obc", "amber14, gbn2")

#: Molecules of different chemistry and charge, each with a force field: amber99sbildn, amber96, amber14.
BARRED = [
    ("alanine-dipeptide", "amber99sbildn, obc"),
    ("met-enkephalin", "amber99sbildn, obc"),
    ("lysine-dipeptide", "amber14, obc2"),
    ("aspartate-dipeptide", "amber14, obc2"),
    ("cysteine-dipeptide", "amber14, gbn2"),
    ("proline-dipeptide", "amber96, obc1"),
    ("tryptophan-dipeptide", "amber96, obc1"),
]


def force_field_of(name: str = "alanine-dipeptide", forcefield: str = "amber99sbildn, obc") -> ForceField:
    return ForceField(system_of(name, forcefield).openmm_system)


def perturbed(name: str, forcefield: str, frames: int) -> Tensor:
    """Frames with noise of log-uniform size."""
    system = system_of(name, forcefield)
    low, high = map(math.log, NOISE)
    noise = (low + (high - low) * torch.rand(frames, 1, 1, dtype=torch.float64)).exp()
    return system.positions + noise * torch.randn(frames, system.atoms, 3, dtype=torch.float64)


def assert_agrees_with_openmm(system: openmm.System, x: Tensor) -> None:
    """Energies and gradients of all frames below HIGHEST, which most are."""
    expected, expected_gradient = OpenMMEnergy(system, workers=0).energy_and_gradient(x)
    energy, gradient = ForceField(system).energy_and_gradient(x)
    low = expected < HIGHEST
    assert low.double().mean() >= 0.5
    assert (energy - expected)[low].abs().max() <= ENERGY
    assert (gradient - expected_gradient)[low].abs().max() <= GRADIENT


# --- OpenMM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forcefield", FORCE_FIELDS)
@pytest.mark.parametrize("name", MOLECULES)
def test_agrees_with_openmm(name: str, forcefield: str) -> None:
    system = system_of(name, forcefield).openmm_system
    assert_agrees_with_openmm(system, perturbed(name, forcefield, 4))


@pytest.mark.parametrize(("name", "forcefield"), BARRED)
def test_agrees_with_openmm_on_a_thousand_frames(name: str, forcefield: str) -> None:
    assert_agrees_with_openmm(system_of(name, forcefield).openmm_system, perturbed(name, forcefield, 1000))


@pytest.mark.parametrize("forcefield", FORCE_FIELDS)
def test_agrees_with_openmm_where_atoms_are_inside_each_other(forcefield: str) -> None:
    """Pairs at distances that descreening tells apart: one sphere inside the other, overlapping, apart, no neck."""
    original = system_of(forcefield=forcefield).openmm_system
    system = openmm.System()
    for _ in range(original.getNumParticles()):
        system.addParticle(1.0)
    force = next(force for force in original.getForces() if "GB" in type(force).__name__)
    system.addForce(copy.deepcopy(force))
    generator = torch.Generator().manual_seed(1)
    size = torch.logspace(-2, 0, 20, dtype=torch.float64)[:, None, None]
    assert_agrees_with_openmm(system, size * torch.rand(20, 22, 3, generator=generator, dtype=torch.float64))


def test_torsions_of_any_phase_and_ryckaert_bellemans_agree_with_openmm() -> None:
    system = openmm.System()
    for _ in range(5):
        system.addParticle(1.0)
    periodic, ryckaert = openmm.PeriodicTorsionForce(), openmm.RBTorsionForce()
    for n, phase in enumerate((0.3, -1.2, 2.0, math.pi, 0.0, 5.0), start=1):
        periodic.addTorsion(0, 1, 2, 3, n, phase, 4.0 + n)
        periodic.addTorsion(4, 3, 2, 1, n, phase, 3.0 - n)
    ryckaert.addTorsion(0, 1, 2, 3, 9.2, 12.1, -13.1, -3.0, 26.2, -31.4)
    system.addForce(periodic)
    system.addForce(ryckaert)
    assert_agrees_with_openmm(system, torch.rand(50, 5, 3, dtype=torch.float64))


def test_one_ion() -> None:
    system = openmm.System()
    system.addParticle(1.0)
    force = openmm.GBSAOBCForce()
    force.addParticle(1.0, 0.15, 0.8)
    system.addForce(force)
    assert_agrees_with_openmm(system, torch.rand(3, 1, 3, dtype=torch.float64))


# --- derivatives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forcefield", SMALL)
def test_first_and_second_derivatives(forcefield: str) -> None:
    force_field = force_field_of(forcefield=forcefield)
    x = shaken(system_of(forcefield=forcefield), 2, 0.01).requires_grad_()
    assert torch.autograd.gradcheck(force_field, (x,), eps=1e-7, rtol=1e-4, fast_mode=True)
    assert torch.autograd.gradgradcheck(force_field, (x,), eps=1e-7, rtol=1e-4, fast_mode=True)


def test_hessian_is_that_of_the_gradients() -> None:
    """H v by double backward against central differences of hand-written gradients."""
    force_field, step = force_field_of(), 1e-6
    x = shaken(system_of(), 3, 0.005).requires_grad_()
    v = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(force_field.energy(x).sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * v).sum(), x)
    ahead, behind = (force_field.energy_and_gradient(x + sign * step * v)[1] for sign in (1, -1))
    torch.testing.assert_close(
        product, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-5 * float(product.abs().max())
    )


@pytest.mark.parametrize("forcefield", FORCE_FIELDS)
def test_the_twin_says_the_same(forcefield: str) -> None:
    force_field = force_field_of("lysine-dipeptide", forcefield)
    x = perturbed("lysine-dipeptide", forcefield, 20).requires_grad_()
    energy, gradient = force_field.energy_and_gradient(x)
    reference = force_field.energy_reference(x)
    (expected,) = torch.autograd.grad(reference.sum(), x)
    for value, wanted in ((energy, reference.detach()), (gradient, expected)):
        assert (value - wanted).abs().max() <= ROUNDING * max(1.0, float(wanted.abs().max()))


def test_function_transforms() -> None:
    force_field = force_field_of()
    x = shaken(system_of(), 2)
    gradient = torch.func.vmap(torch.func.grad(force_field.energy))(x)
    torch.testing.assert_close(gradient, force_field.energy_and_gradient(x)[1], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("forcefield", SMALL)
def test_traces_without_a_graph_break(forcefield: str) -> None:
    force_field = force_field_of(forcefield=forcefield)
    x = shaken(system_of(forcefield=forcefield), 8).requires_grad_()
    energy = torch.compile(force_field, fullgraph=True, backend="aot_eager")(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    expected, expected_gradient = force_field.energy_and_gradient(x)
    torch.testing.assert_close(energy, expected, rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiles() -> None:
    force_field, x = force_field_of(), shaken(system_of(), 8)
    energy = torch.compile(force_field, fullgraph=True)(x)
    torch.testing.assert_close(energy, force_field.energy(x), rtol=1e-9, atol=1e-7)


# --- dtypes, shapes, modules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "forcefield"), BARRED)
def test_single_precision(name: str, forcefield: str) -> None:
    """Against float64 at the same, rounded positions; relative to |E| of each kind of term, summed."""
    force_field = force_field_of(name, forcefield)
    x = perturbed(name, forcefield, 50).float()
    energy, gradient = force_field.energy_and_gradient(x)
    expected, expected_gradient = force_field.energy_and_gradient(x.double())
    terms = [term for part in force_field.terms for term in getattr(part, "terms", [part])]
    assert energy.dtype == gradient.dtype == torch.float32 and len(terms) == 5
    low = expected < HIGHEST
    assert ((energy - expected).abs() / magnitude(force_field, x.double()))[low].max() <= SINGLE
    size = expected_gradient.abs().amax((-2, -1))
    assert ((gradient - expected_gradient).abs().amax((-2, -1)) / size)[low].max() <= SINGLE


def magnitude(force_field: ForceField, x: Tensor) -> Tensor:
    """Σ |E_term| over bonds, angles, torsions, nonbonded pairs and solvent, `(...)` in kJ/mol."""
    *bonded, pairs = force_field.terms
    i, j = pairs.atoms
    r = (x[..., i, :] - x[..., j, :]).norm(dim=-1)
    energies = [term.energy(x) for term in bonded] + [term.energy(r) for term in pairs.terms]
    return torch.stack(energies).abs().sum(0)


def test_positions_decide_the_precision() -> None:
    force_field, x = force_field_of(), shaken(system_of(), 2)
    expected = force_field.energy(x)
    assert force_field.energy(x.float()).dtype == torch.float32
    assert torch.equal(force_field.float().energy(x), expected)
    assert torch.equal(copy.deepcopy(force_field).double().energy(x), expected)
    assert not list(force_field.parameters()) and not force_field.state_dict()


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,), (2, 0)])
def test_any_leading_dimensions(batch: tuple[int, ...]) -> None:
    force_field = force_field_of()
    x = system_of().positions.expand(*batch, -1, -1).clone().requires_grad_()
    energy, gradient = force_field.energy_and_gradient(x)
    assert energy.shape == batch and gradient.shape == x.shape and not energy.requires_grad
    force_field(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradient)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    force_field, x = force_field_of(), shaken(system_of(), 50, 0.01)
    expected = force_field.energy_and_gradient(x)
    monkeypatch.setattr(module, "CHUNK", 1)
    energy, gradient = force_field.energy_and_gradient(x)
    torch.testing.assert_close(energy, expected[0], rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(gradient, expected[1], rtol=ROUNDING, atol=ROUNDING * float(expected[1].abs().max()))


@given(st.floats(-math.pi, math.pi), st.floats(-5.0, 5.0))
def test_moving_the_molecule_changes_nothing(angle: float, shift: float) -> None:
    force_field, x = force_field_of(), system_of().positions
    c, s = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    energy, gradient = force_field.energy_and_gradient(x)
    moved = x @ rotation.T + shift
    torch.testing.assert_close(force_field.energy(moved), energy, rtol=0, atol=1e-8)
    assert gradient.sum(0).abs().max() < 1e-8


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 21, 3), r"`x` must be of shape \(\.\.\., 22, 3\), got \(3, 21, 3\)"),
        (torch.zeros(66), r"got \(66,\)"),
        (torch.zeros(1, 22, 3, dtype=torch.float16), "`x` must be of dtype float32 or float64, got torch.float16"),
        (torch.zeros(1, 22, 3, dtype=torch.int64), "got torch.int64"),
    ],
)
def test_refuses_other_positions(x: Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        force_field_of().energy(x)
