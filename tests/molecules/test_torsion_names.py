"""Torsions by name, and the ones that are biased by default."""

from __future__ import annotations

import pytest
from openmm import app
from tests.molecules.coordinates import MOLECULES, pdb

from p4torch.errors import ArgumentError
from p4torch.molecules.graph import BondGraph
from p4torch.molecules.torsion_names import default_torsions, parse_torsions, torsion_label

PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)


def test_names_of_the_backbone() -> None:
    topology = pdb("alanine-dipeptide").topology
    assert parse_torsions(topology, "phi, psi:2,4-6-8-9") == (PHI, PSI, (4, 6, 8, 9))
    assert torsion_label(topology, PHI) == torsion_label(topology, PHI[::-1]) == "phi:2"
    assert torsion_label(topology, (4, 6, 8, 9)) == "4-6-8-9"
    assert default_torsions(topology) == (PHI,)


def test_several_of_a_name_need_the_residue() -> None:
    topology = pdb("met-enkephalin").topology
    with pytest.raises(ArgumentError, match="one phi of the molecule, which has phi:2, phi:3, phi:4, phi:5"):
        parse_torsions(topology, "phi")
    assert len(parse_torsions(topology, "phi:2,phi:5,psi:1")) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chi", "phi, psi, one with its residue"),
        ("phi:7", "one phi of the molecule, which has phi:2"),
        ("1-2-3", "atoms"),
        ("1-2-3-3", "four different atoms from 0 to 21"),
        ("1-2-3-22", "four different atoms from 0 to 21"),
        ("", "phi, psi"),
    ],
)
def test_unknown_torsions_are_refused(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse_torsions(pdb("alanine-dipeptide").topology, text)


@pytest.mark.parametrize("name", MOLECULES)
def test_default_torsions_turn_about_rotatable_bonds(name: str) -> None:
    topology = pdb(name).topology
    graph, atoms = BondGraph.from_topology(topology), list(topology.atoms())
    for torsion in default_torsions(topology):
        i, j, k, m = torsion
        assert j in graph.neighbours[i] and k in graph.neighbours[j] and m in graph.neighbours[k]
        assert not graph.in_ring(j, k)
        assert {atoms[j].name, atoms[k].name} != {"C", "N"}  # amides
        assert 1 not in (graph.numbers[i], graph.numbers[m])


def test_prolines_phi_is_in_a_ring() -> None:
    topology = pdb("proline-dipeptide").topology
    (phi,), (psi,) = parse_torsions(topology, "phi"), parse_torsions(topology, "psi")
    result = {torsion[1:3] for torsion in default_torsions(topology)}
    assert phi[1:3] not in result and phi[2:0:-1] not in result
    assert psi[1:3] in result or psi[2:0:-1] in result


def test_backbone_bonds_are_biased_by_their_standard_torsions() -> None:
    topology = pdb("alanine-tetrapeptide").topology
    labels = [torsion_label(topology, torsion) for torsion in default_torsions(topology)]
    assert labels == [f"{kind}:{residue}" for residue in (2, 3, 4) for kind in ("phi", "psi")]


def numbered(*residues: tuple[str, str, str]) -> app.Topology:
    """Capped alanines, with another (chain, number, insertion code) of each residue."""
    topology, atoms = app.Topology(), []
    source = pdb("alanine-tetrapeptide").topology
    chains: dict[str, app.topology.Chain] = {}
    for residue, (chain, number, code) in zip(source.residues(), residues, strict=True):
        if chain not in chains:
            chains[chain] = topology.addChain(chain)
        copy = topology.addResidue(residue.name, chains[chain], number, code)
        atoms += [topology.addAtom(atom.name, atom.element, copy) for atom in residue.atoms()]
    for one, other in source.bonds():
        topology.addBond(atoms[one.index], atoms[other.index])
    return topology


def test_insertion_codes_tell_residues_apart() -> None:
    topology = numbered(("A", "1", ""), ("A", "2", ""), ("A", "2", "A"), ("A", "2", "B"), ("A", "3", ""))
    torsions = parse_torsions(topology, "phi:2,phi:2A,phi:A:2B")
    assert torsions == parse_torsions(pdb("alanine-tetrapeptide").topology, "phi:2,phi:3,phi:4")
    assert [torsion_label(topology, torsion) for torsion in torsions] == ["phi:2", "phi:2A", "phi:2B"]


def test_chains_that_are_numbered_alike_are_told_apart() -> None:
    topology = numbered(("A", "1", ""), ("A", "2", ""), ("A", "3", ""), ("B", "2", ""), ("B", "3", ""))
    torsions = parse_torsions(topology, "phi:A:2,phi:3,phi:B:2")
    assert torsions == parse_torsions(pdb("alanine-tetrapeptide").topology, "phi:2,phi:3,phi:4")
    assert [torsion_label(topology, torsion) for torsion in torsions] == ["phi:A:2", "phi:3", "phi:B:2"]
    with pytest.raises(ArgumentError, match="one phi of the molecule, which has phi:A:2, phi:3, phi:B:2, got 'phi:2'"):
        parse_torsions(topology, "phi:2")


def test_names_that_no_chain_tells_apart_are_refused() -> None:
    topology = numbered(("A", "1", ""), ("A", "2", ""), ("A", "2", ""), ("A", "2", ""), ("A", "3", ""))
    first = parse_torsions(pdb("alanine-tetrapeptide").topology, "phi:2")[0]
    assert torsion_label(topology, first) == "-".join(map(str, first))
    with pytest.raises(ArgumentError, match="one phi of the molecule"):
        parse_torsions(topology, "phi:2")
