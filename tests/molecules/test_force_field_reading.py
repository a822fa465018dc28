"""What a force field refuses, by name and with the reason; and solvents that it knows by their expressions."""

from __future__ import annotations

import copy
from collections.abc import Callable

import openmm
import pytest
from openmm import app
from tests.molecules.systems import FORCE_FIELDS, pdb_of, system_of

from p4torch.errors import ArgumentError
from p4torch.molecules.force_field import ForceField


def pair(*forces: openmm.Force) -> openmm.System:
    """Two particles."""
    system = openmm.System()
    for force in forces:
        system.addForce(force)
    for _ in range(2):
        system.addParticle(1.0)
    return system


def nonbonded(method: int = openmm.NonbondedForce.NoCutoff) -> openmm.NonbondedForce:
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(method)
    for _ in range(2):
        force.addParticle(0.5, 0.3, 0.4)
    return force


def with_offset() -> openmm.NonbondedForce:
    force = nonbonded()
    force.addGlobalParameter("lambda", 0.0)
    force.addParticleParameterOffset("lambda", 0, 1.0, 0.0, 0.0)
    return force


def periodic_bonds() -> openmm.HarmonicBondForce:
    force = openmm.HarmonicBondForce()
    force.addBond(0, 1, 0.1, 1e5)
    force.setUsesPeriodicBoundaryConditions(True)
    return force


def cut_solvent() -> openmm.GBSAOBCForce:
    force = openmm.GBSAOBCForce()
    force.setNonbondedMethod(openmm.GBSAOBCForce.CutoffNonPeriodic)
    return force


def constrained() -> openmm.System:
    system = pair(nonbonded())
    system.addConstraint(0, 1, 0.1)
    return system


def with_virtual_site() -> openmm.System:
    system = pair()
    system.setParticleMass(1, 0.0)
    system.addParticle(1.0)
    system.setVirtualSite(1, openmm.TwoParticleAverageSite(0, 2, 0.5, 0.5))
    return system


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pair(nonbonded(openmm.NonbondedForce.PME)), "NonbondedForce: periodic.*OpenMMEnergy can"),
        (lambda: pair(nonbonded(openmm.NonbondedForce.CutoffNonPeriodic)), "NonbondedForce: only the method NoCutoff"),
        (lambda: pair(with_offset()), "NonbondedForce: parameter offsets"),
        (lambda: pair(periodic_bonds()), "HarmonicBondForce: periodic"),
        (lambda: pair(cut_solvent()), "GBSAOBCForce: only the method NoCutoff"),
        (lambda: pair(openmm.CustomExternalForce("x^2")), "CustomExternalForce: a force type.*OpenMMEnergy can"),
        (lambda: pair(openmm.MonteCarloBarostat(1.0, 300.0)), "MonteCarloBarostat"),
        (lambda: pair(openmm.CustomGBForce()), "CustomGBForce: its expressions are not those"),
        (constrained, r"without constraints .*got 1 of them"),
        (with_virtual_site, r"without virtual sites, got particles \[1\]"),
        (openmm.System, "with particles, got none"),
        (lambda: "system.xml", "an openmm.System, got str"),
    ],
)
def test_refuses(make: Callable[[], openmm.System], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ForceField(make())


def implicit(name: str, **options: object) -> openmm.System:
    topology = app.PDBFile(str(pdb_of("alanine-dipeptide"))).topology
    return app.ForceField("amber14-all.xml", f"implicit/{name}.xml").createSystem(
        topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, **options
    )


@pytest.mark.parametrize("name", ["obc2", "gbn2"])
def test_refuses_salt(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"CustomGBForce: its expressions are not those .* without salt"):
        ForceField(implicit(name, implicitSolventKappa=1.0))


def test_refuses_another_model_of_born_radii() -> None:
    with pytest.raises(ArgumentError, match="CustomGBForce: its expressions"):
        ForceField(implicit("hct"))


@pytest.mark.parametrize("forcefield", [name for name in FORCE_FIELDS if name != "amber99sbildn, obc"])
def test_refuses_expressions_that_were_changed(forcefield: str) -> None:
    """Every expression counts: of the integrals, the radii, the self energy, the surface and the pairs."""
    original = system_of(forcefield=forcefield).openmm_system
    index = next(i for i, force in enumerate(original.getForces()) if isinstance(force, openmm.CustomGBForce))
    force = original.getForce(index)
    values, terms = force.getNumComputedValues(), force.getNumEnergyTerms()
    for changed in range(values + terms):
        system = copy.deepcopy(original)
        edited = system.getForce(index)
        if changed < values:
            name, expression, kind = edited.getComputedValueParameters(changed)
            edited.setComputedValueParameters(changed, name, f"2*{expression}", kind)
        else:
            expression, kind = edited.getEnergyTermParameters(changed - values)
            edited.setEnergyTermParameters(changed - values, f"2*{expression}", kind)
        with pytest.raises(ArgumentError, match="CustomGBForce: its expressions"):
            ForceField(system)


def test_dielectrics_and_surface_are_read() -> None:
    from tests.molecules.test_force_field import assert_agrees_with_openmm, perturbed

    for options in ({"soluteDielectric": 2.0, "solventDielectric": 40.0}, {"sasaMethod": None}):
        for name in ("obc1", "obc2", "gbn", "gbn2"):
            assert_agrees_with_openmm(implicit(name, **options), perturbed("alanine-dipeptide", "amber14, obc2", 3))
