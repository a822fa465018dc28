"""`MolecularSystem`: what it holds, what it makes of files, and everything that it refuses."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openmm
import pytest
import torch
from openmm import app, unit
from tests.molecules.small_molecules import SMALL, residue_of, small_files
from tests.molecules.systems import FORCE_FIELDS, MOLECULES, pdb_of, shaken, system_of

from p4torch.errors import ArgumentError
from p4torch.molecules.openmm_energy import OpenMMEnergy
from p4torch.molecules.system import MolecularSystem

ENERGY = 1e-4  # kJ/mol: what any implementation of a force field may differ by from OpenMM's Reference platform
PDB_DIGITS = 1e-4  # nm: a PDB file has three decimals of an angstrom

DIPEPTIDE = pdb_of("alanine-dipeptide")
LINES = DIPEPTIDE.read_text().splitlines()


def _written(path: Path, topology: app.Topology, positions: torch.Tensor) -> Path:
    with path.open("w") as file:
        app.PDBFile.writeFile(topology, positions.numpy() * unit.nanometer, file)
    return path


def _edited(system: openmm.System, edit: Callable[[openmm.System], object]) -> openmm.System:
    system = copy.deepcopy(system)
    edit(system)
    return system


# --- what it holds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MOLECULES)
def test_molecules_from_pdb(name: str) -> None:
    system = system_of(name)
    assert system.positions.shape == (system.atoms, 3)
    assert system.positions.dtype == torch.float64
    assert system.topology.getNumAtoms() == system.openmm_system.getNumParticles() == system.atoms
    assert system.mdtraj_topology.n_atoms == system.atoms
    rings = {"proline-dipeptide": 1, "tryptophan-dipeptide": 2, "met-enkephalin": 2}
    assert len(system.bonds) == system.atoms - 1 + rings.get(name, 0)


def test_alanine_dipeptide_is_the_built_in_example() -> None:
    system = MolecularSystem.alanine_dipeptide(temperature=600.0)
    assert system.atoms == 22
    assert system.temperature == 600.0
    assert system.kT == pytest.approx(600 * 0.00831446261815324, rel=1e-15)
    assert repr(system).startswith("MolecularSystem(ACE-ALA-NME, atoms=22, temperature=600 K")


@pytest.mark.parametrize("forcefield", FORCE_FIELDS)
def test_energy_is_openmms_in_kT(forcefield: str) -> None:
    system = system_of("alanine-dipeptide", forcefield)
    x = shaken(system, 6).reshape(2, 3, system.atoms, 3)
    context = openmm.Context(
        system.openmm_system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    energies = system.energy(x)
    assert energies.shape == (2, 3)
    for frame, energy in zip(x.flatten(0, 1), energies.flatten(), strict=True):
        context.setPositions(frame.numpy())
        oracle = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        assert float(energy) * system.kT == pytest.approx(oracle, abs=ENERGY)


def test_a_force_that_pytorch_does_not_know_is_left_to_openmm() -> None:
    def add(physics: openmm.System) -> None:
        force = openmm.CustomCompoundBondForce(2, "100*distance(p1, p2)")
        force.addBond([0, 21])
        physics.addForce(force)

    system = system_of()
    other = MolecularSystem(_edited(system.openmm_system, add), system.topology, system.positions)
    assert isinstance(other.potential, OpenMMEnergy)
    difference = (other.energy(system.positions) - system.energy(system.positions)) * system.kT
    assert float(difference) == pytest.approx(
        100 * float((system.positions[0] - system.positions[21]).norm()), abs=ENERGY
    )


def test_a_system_from_its_xml_is_the_same(tmp_path: Path) -> None:
    system = system_of("proline-dipeptide")
    xml = tmp_path / "system.xml"
    xml.write_text(openmm.XmlSerializer.serialize(system.openmm_system))
    again = MolecularSystem.from_xml(xml, pdb_of("proline-dipeptide"), temperature=310.0)
    assert again.fingerprint == system.fingerprint
    assert again.temperature == 310.0
    assert torch.equal(again.positions, system.positions)


def test_what_was_given_may_change_afterwards() -> None:
    system = system_of()
    physics = copy.deepcopy(system.openmm_system)
    held = MolecularSystem(physics, system.topology, system.positions)
    physics.addForce(openmm.CustomExternalForce("x"))
    assert held.openmm_system.getNumForces() == system.openmm_system.getNumForces()


def test_copies_and_pickles() -> None:
    system = MolecularSystem.alanine_dipeptide()
    energy = system.energy(system.positions)
    for again in (copy.deepcopy(system), pickle.loads(pickle.dumps(system))):
        assert again.fingerprint == system.fingerprint
        assert torch.equal(again.energy(again.positions), energy)


# --- the fingerprint --------------------------------------------------------------------------------------------------


def test_fingerprints_tell_molecules_and_force_fields_apart() -> None:
    marks = {system_of(name).fingerprint for name in MOLECULES}
    marks |= {system_of("met-enkephalin", forcefield).fingerprint for forcefield in FORCE_FIELDS}
    assert len(marks) == len(MOLECULES) + len(FORCE_FIELDS) - 1  # one pair is in both


def test_a_fingerprint_counts_parameters_and_not_masses_or_temperature() -> None:
    def heavier(physics: openmm.System) -> None:
        physics.setParticleMass(1, 3.0)

    def charged(physics: openmm.System) -> None:
        for force in physics.getForces():
            if isinstance(force, openmm.NonbondedForce):
                charge, sigma, epsilon = force.getParticleParameters(0)
                force.setParticleParameters(0, charge * 1.001, sigma, epsilon)

    system = system_of()
    held = MolecularSystem(
        _edited(system.openmm_system, heavier), system.topology, system.positions + 1.0, temperature=400.0
    )
    changed = MolecularSystem(_edited(system.openmm_system, charged), system.topology, system.positions)
    assert held.fingerprint == system.fingerprint
    assert changed.fingerprint != system.fingerprint


def test_a_fingerprint_does_not_hang_on_the_order_of_forces_or_bonds() -> None:
    def reverse(physics: openmm.System) -> None:
        forces = [copy.deepcopy(force) for force in physics.getForces()]
        for index in reversed(range(len(forces))):
            physics.removeForce(index)
        for force in reversed(forces):
            if isinstance(force, openmm.HarmonicBondForce):
                terms = [force.getBondParameters(index) for index in range(force.getNumBonds())]
                for index, term in enumerate(reversed(terms)):
                    force.setBondParameters(index, *term)
            physics.addForce(force)

    system = system_of()
    again = MolecularSystem(_edited(system.openmm_system, reverse), system.topology, system.positions)
    assert again.fingerprint == system.fingerprint


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = "from p4torch.molecules.system import MolecularSystem as M; print(M.alanine_dipeptide().fingerprint)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == system_of().fingerprint


# --- systems that are refused -----------------------------------------------------------------------------------------


def _periodic(physics: openmm.System) -> None:
    force = openmm.CustomBondForce("r")
    force.addBond(0, 1)
    force.setUsesPeriodicBoundaryConditions(True)
    force.setName("across the box")
    physics.addForce(force)


def _method(method: int) -> Callable[[openmm.System], object]:
    def edit(physics: openmm.System) -> None:
        for force in physics.getForces():
            if isinstance(force, openmm.NonbondedForce):
                force.setNonbondedMethod(method)

    return edit


def _virtual(physics: openmm.System) -> None:
    physics.setParticleMass(5, 0)
    physics.setVirtualSite(5, openmm.TwoParticleAverageSite(4, 6, 0.5, 0.5))


def _hidden_field(physics: openmm.System) -> None:
    inner = openmm.CustomExternalForce("x*z")
    inner.addParticle(3)
    outer = openmm.CustomCVForce("field")
    outer.addCollectiveVariable("field", inner)
    physics.addForce(outer)


UNFIT: dict[str, tuple[Callable[[openmm.System], object], str]] = {
    "PME": (_method(openmm.NonbondedForce.PME), r"nonbondedMethod=NoCutoff, got NonbondedForce with PME"),
    "cutoff": (_method(openmm.NonbondedForce.CutoffNonPeriodic), r"NonbondedForce with CutoffNonPeriodic"),
    "periodic": (_periodic, r"without periodic boundary conditions, got them in across the box"),
    "constraints": (lambda s: s.addConstraint(4, 5, 0.1), r"without constraints .* got 1, the first between atoms 4"),
    "virtual site": (_virtual, r"without virtual sites, got one at particle 5"),
    "massless": (lambda s: s.setParticleMass(7, 0), r"without massless particles, got one at particle 7"),
    "thermostat": (lambda s: s.addForce(openmm.AndersenThermostat(300, 1)), r"without AndersenThermostat"),
    "barostat": (lambda s: s.addForce(openmm.MonteCarloBarostat(1, 300)), r"without MonteCarloBarostat"),
    "external": (lambda s: s.addForce(openmm.CustomExternalForce("x")), r"without CustomExternalForce .*as a whole"),
    "Drude": (lambda s: s.addForce(openmm.DrudeForce()), r"without DrudeForce"),
    "hidden field": (_hidden_field, r"stays when the molecule is turned and moved"),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_refused_systems(reason: str) -> None:
    edit, message = UNFIT[reason]
    system = system_of()
    with pytest.raises(ArgumentError, match=message) as caught:
        MolecularSystem(_edited(system.openmm_system, edit), system.topology, system.positions)
    assert str(caught.value).startswith("`openmm_system` must be")


def test_no_system_at_all() -> None:
    system = system_of()
    with pytest.raises(ArgumentError, match=r"`openmm_system` must be an openmm.System, got str"):
        MolecularSystem("system.xml", system.topology, system.positions)
    with pytest.raises(ArgumentError, match=r"with particles, got none"):
        MolecularSystem(openmm.System(), app.Topology(), torch.zeros(0, 3))


@pytest.mark.parametrize("temperature", [0, -300.0, float("nan"), float("inf"), "300", True])
def test_refused_temperatures(temperature: float) -> None:
    with pytest.raises(ArgumentError, match=r"`temperature` must be a finite number of kelvin > 0"):
        MolecularSystem.alanine_dipeptide(temperature=temperature)


def test_refused_topologies() -> None:
    system, other = system_of(), system_of("cysteine-dipeptide")
    with pytest.raises(ArgumentError, match=r"`topology` must be of the System's 22 particles, got 23 atoms"):
        MolecularSystem(system.openmm_system, other.topology, other.positions)
    with pytest.raises(ArgumentError, match=r"`topology` must be an openmm.app.Topology, got"):
        MolecularSystem(system.openmm_system, system.mdtraj_topology, system.positions)


def test_atoms_in_another_order_are_refused() -> None:
    system = system_of()
    turned, atoms = app.Topology(), list(system.topology.atoms())[::-1]
    residue = turned.addResidue("ALL", turned.addChain())
    new = {atom: turned.addAtom(atom.name, atom.element, residue) for atom in atoms}
    for bond in system.topology.bonds():
        turned.addBond(new[bond[0]], new[bond[1]])
    with pytest.raises(ArgumentError, match=r"in the System's order of atoms, got a bond of"):
        MolecularSystem(system.openmm_system, turned, system.positions.flip(0))


def test_refused_positions() -> None:
    system = system_of()
    broken = system.positions.clone()
    broken[8, 1] = float("nan")
    with pytest.raises(ArgumentError, match=r"`positions` must be finite, got 1 atoms .* CA of ALA 2 .*\(atom 8\)"):
        MolecularSystem(system.openmm_system, system.topology, broken)
    clash = system.positions.clone()
    clash[21] = clash[0] + 0.001
    with pytest.raises(ArgumentError, match=r"at least 0.04 nm apart, got .*\(atom 0\) and .*\(atom 21\) at 0.0017"):
        MolecularSystem(system.openmm_system, system.topology, clash)
    with pytest.raises(ArgumentError, match=r"of shape \(22, 3\), the topology's atoms, got \(21, 3\)"):
        MolecularSystem(system.openmm_system, system.topology, system.positions[:-1])
    with pytest.raises(ArgumentError, match=r"`positions` must be a tensor .* got ndarray"):
        MolecularSystem(system.openmm_system, system.topology, system.positions.numpy())


# --- files that are refused -------------------------------------------------------------------------------------------


def test_missing_hydrogens_are_named_with_the_way_to_add_them(tmp_path: Path) -> None:
    bare = tmp_path / "bare.pdb"
    bare.write_text("\n".join(line for line in LINES if not line[12:16].strip().lstrip("123").startswith("H")))
    with pytest.raises(ArgumentError, match=r"(?s)`path` must be .* ACE 1.*ALA 2.*NME 3.*addHydrogens") as caught:
        MolecularSystem.from_pdb(bare)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "missing" in str(caught.value)


def test_the_advice_on_hydrogens_helps(tmp_path: Path) -> None:
    bare = tmp_path / "bare.pdb"
    bare.write_text("\n".join(line for line in LINES if not line[12:16].strip().lstrip("123").startswith("H")))
    pdb = app.PDBFile(str(bare))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(app.ForceField(*FORCE_FIELDS["amber99sbildn, obc"]))
    full = _written(
        tmp_path / "full.pdb",
        modeller.topology,
        torch.tensor(modeller.positions.value_in_unit(unit.nanometer), dtype=torch.float64),
    )
    assert MolecularSystem.from_pdb(full).atoms == 22


def test_one_missing_hydrogen_is_found(tmp_path: Path) -> None:
    path = tmp_path / "one.pdb"
    path.write_text("\n".join(line for line in LINES if line[12:16].strip() != "HA"))
    with pytest.raises(ArgumentError, match=r"got 1 that it cannot match: ALA 2.*Hydrogens are missing") as caught:
        MolecularSystem.from_pdb(path)
    assert "ACE 1" not in str(caught.value)


def test_unknown_residues_are_named(tmp_path: Path) -> None:
    path = tmp_path / "ligand.pdb"
    ligand = "HETATM  101  {0}1  LIG B   9      20.000  {1}.000  20.000  1.00  0.00           {0}  "
    atoms = [line for line in LINES if line.startswith(("ATOM", "HETATM"))]
    path.write_text("\n".join([*atoms, "TER", ligand.format("N", 20), ligand.format("F", 22), "END"]))
    with pytest.raises(
        ArgumentError,
        match=r"`path` must be of residues that .* got 1 that it cannot match: LIG 9 of chain B.*Modeller.delete",
    ):
        MolecularSystem.from_pdb(path)


@pytest.mark.parametrize("forcefield", [("amber14-all.xml", "implicit/obc2.xml"), ("amber99sbildn.xml",)])
@pytest.mark.parametrize("name", SMALL)
def test_a_molecule_with_its_hydrogens_that_is_unknown_is_not_told_to_add_them(
    tmp_path: Path, name: str, forcefield: tuple[str, ...]
) -> None:
    path, xml = small_files(name, tmp_path)
    with pytest.raises(ArgumentError, match=f"no {residue_of(name)}.*--system-xml") as caught:
        MolecularSystem.from_pdb(path, forcefield)
    assert "Hydrogens are missing" not in str(caught.value)
    assert MolecularSystem.from_xml(xml, path).atoms > 8


def test_missing_heavy_atoms_are_not_called_hydrogens(tmp_path: Path) -> None:
    path = tmp_path / "no-beta.pdb"
    path.write_text("\n".join(line for line in LINES if line[12:16].strip() not in ("CB", "O")))
    with pytest.raises(ArgumentError, match="Atoms are missing there, or are too many") as caught:
        MolecularSystem.from_pdb(path)
    assert "Hydrogens are missing" not in str(caught.value)


def test_several_molecules_are_named_with_their_distance(tmp_path: Path) -> None:
    system = system_of()
    modeller = app.Modeller(system.topology, system.positions.numpy() * unit.nanometer)
    modeller.add(system.topology, (system.positions.numpy() + 3.0) * unit.nanometer)
    both = torch.cat([system.positions, system.positions + 3.0])
    path = _written(tmp_path / "two.pdb", modeller.topology, both)
    message = r"of one molecule, got 2 that no bond connects: ACE 1 of chain A, .*, NME 3 of chain A; ACE 1 of chain B"
    with pytest.raises(ArgumentError, match=message) as caught:
        MolecularSystem.from_pdb(path)
    distance = float(torch.cdist(both[:22], both[22:]).min())
    output = float(str(caught.value).split("apart")[0].split("are ")[-1].split()[0])
    assert output == pytest.approx(distance, abs=1e-3)


def test_atoms_on_top_of_each_other_in_a_file(tmp_path: Path) -> None:
    system = system_of()
    clash = system.positions.clone()
    clash[12] = clash[2]
    path = _written(tmp_path / "clash.pdb", system.topology, clash)
    with pytest.raises(ArgumentError, match=r"apart, got .*\(atom 2\) and .*\(atom 12\) at 0.0000 nm"):
        MolecularSystem.from_pdb(path)


def test_of_several_models_the_first_is_taken_with_a_warning(tmp_path: Path) -> None:
    system = system_of()
    path = tmp_path / "models.pdb"
    with path.open("w") as file:
        app.PDBFile.writeHeader(system.topology, file)
        for model in (1, 2):
            x = system.positions.numpy() * model * unit.nanometer
            app.PDBFile.writeModel(system.topology, x, file, modelIndex=model)
        app.PDBFile.writeFooter(system.topology, file)
    with pytest.warns(UserWarning, match="has 2 models; the first is taken"):
        taken = MolecularSystem.from_pdb(path)
    assert (taken.positions - system.positions).abs().max() < PDB_DIGITS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"`path` must be a PDB file with at least one atom"),
        (b"HEADER only\nEND\n", r"`path` must be a PDB file with at least one atom"),
        (b"\x00\xff\xfe\x80 no text", r"`path` must be a PDB file"),
        (
            b"ATOM      1  N   ALA A   1      a.000  b.000  c.000  1.00  0.00           N  \nEND\n",
            r"`path` must be a PDB",
        ),
    ],
    ids=["empty", "no atoms", "binary", "no numbers"],
)
def test_files_that_are_no_pdb(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "molecule.pdb"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=message) as caught:
        MolecularSystem.from_pdb(path)
    assert str(path) in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"`path` must be a file, got .*none.pdb, which is not there"):
        MolecularSystem.from_pdb(tmp_path / "none.pdb")
    with pytest.raises(ArgumentError, match=r"`path` must be a file, got .*, a folder"):
        MolecularSystem.from_pdb(tmp_path)
    with pytest.raises(ArgumentError, match=r"`system_xml_path` must be a file"):
        MolecularSystem.from_xml(tmp_path / "none.xml", DIPEPTIDE)
    xml = tmp_path / "system.xml"
    xml.write_text(openmm.XmlSerializer.serialize(system_of().openmm_system))
    with pytest.raises(ArgumentError, match=r"`pdb_path` must be a file"):
        MolecularSystem.from_xml(xml, tmp_path / "none.pdb")


def test_xml_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "system.xml"
    path.write_text("no xml")
    with pytest.raises(ArgumentError, match=r"`system_xml_path` must be the XML of an OpenMM System") as caught:
        MolecularSystem.from_xml(path, DIPEPTIDE)
    assert caught.value.__cause__ is not None
    path.write_text(openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.001)))
    with pytest.raises(ArgumentError, match=r"of a VerletIntegrator"):
        MolecularSystem.from_xml(path, DIPEPTIDE)


@pytest.mark.parametrize("names", [("no-such-field.xml",), ("amber99sbildn.xml", "amber96_obd.xml")])
def test_unknown_force_fields_are_named(names: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError, match=rf"`forcefield` must be .*Could not locate file .*{names[-1]}") as caught:
        MolecularSystem.from_pdb(DIPEPTIDE, names)
    assert isinstance(caught.value.__cause__, ValueError)


def test_force_fields_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"`forcefield` must be names of files, .* got 'amber96.xml'"):
        MolecularSystem.from_pdb(DIPEPTIDE, "amber96.xml")
    with pytest.raises(ArgumentError, match=r"`forcefield` must be names of files"):
        MolecularSystem.from_pdb(DIPEPTIDE, ())
    with pytest.raises(ArgumentError, match=r"`forcefield` must be names of OpenMM force-field files"):
        MolecularSystem.from_pdb(DIPEPTIDE, (str(DIPEPTIDE),))
