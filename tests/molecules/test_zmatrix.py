"""Z-matrices: every atom once, in an order that can be placed."""

from __future__ import annotations

import math

import mdtraj
import pytest
import torch
from hypothesis import given, strategies as st
from openmm import app
from tests.molecules.coordinates import MOLECULES, md_frames, pdb

from p4torch.errors import ArgumentError
from p4torch.molecules import InternalCoordinates, ZMatrix
from p4torch.molecules.zmatrix import Row

PUBLISHED = {
    (0, 1, 4, 6), (1, 4, 6, 8), (2, 1, 4, 0), (3, 1, 4, 0), (4, 6, 8, 14), (5, 4, 6, 8), (7, 6, 8, 4), (11, 10, 8, 6),
    (12, 10, 8, 11), (13, 10, 8, 11), (15, 14, 8, 16), (16, 14, 8, 6), (17, 16, 14, 15), (18, 16, 14, 8),
    (19, 18, 16, 14), (20, 18, 16, 19), (21, 18, 16, 19),
}  # fmt: skip
#: A hydrogen of a methyl group stays within this of ±120° of its sibling, in rad: 300 K and no rotation.
NARROW = 0.5


@pytest.mark.parametrize("name", MOLECULES)
@pytest.mark.parametrize("block", ["centre", "chain"])
def test_every_atom_is_placed_once_after_its_partners(name: str, block: str) -> None:
    topology = pdb(name).topology
    zmatrix = ZMatrix.from_topology(topology, block)
    assert sorted(zmatrix.order) == list(range(topology.getNumAtoms()))
    bonded = {frozenset((one.index, other.index)) for one, other in topology.bonds()}
    placed = set(zmatrix.block)
    for level in zmatrix.levels:
        for atom, *partners in level:
            assert set(partners) <= placed and len({atom, *partners}) == 4
            assert frozenset((atom, partners[0])) in bonded
        placed |= {row[0] for row in level}
    assert len(zmatrix.levels) < len(zmatrix)
    assert zmatrix == ZMatrix.from_topology(mdtraj.Topology.from_openmm(topology), block)


def test_the_published_one() -> None:
    zmatrix = ZMatrix.alanine_dipeptide()
    assert zmatrix.block == (6, 8, 9, 10, 14)
    assert set(zmatrix.rows) == PUBLISHED


@pytest.mark.parametrize("name", MOLECULES)
def test_siblings_share_a_rotation(name: str) -> None:
    """Of the torsions about one bond, one at most carries its rotation; the others are measured from a sibling."""
    topology = pdb(name).topology
    zmatrix = ZMatrix.from_topology(topology, "chain")
    bonded = {frozenset((one.index, other.index)) for one, other in topology.bonds()}
    carried = [frozenset(row[1:3]) for row in zmatrix.rows if frozenset((row[1], row[3])) not in bonded]
    assert len(carried) == len(set(carried)) > 0


def test_methyl_hydrogens_have_narrow_torsions() -> None:
    coordinates = InternalCoordinates(zmatrix := ZMatrix.from_topology(pdb("alanine-dipeptide").topology, "chain"))
    x = md_frames("alanine-dipeptide")
    elements = [atom.element.symbol for atom in pdb("alanine-dipeptide").topology.atoms()]
    torsions = coordinates(x)[0][:, list(coordinates.layout.torsions)]
    result = 0
    for k, (atom, _, _, sibling) in enumerate(coordinates.layout.torsion_atoms):
        if elements[atom] == elements[sibling] == "H":
            off = (torsions[:, k].abs() - 2 * math.pi / 3).abs()
            assert off.max() < NARROW
            result += 1
    assert result >= 4 and len(zmatrix) == 22


@pytest.mark.parametrize(
    ("block", "rows", "message"),
    [
        ((0, 1), ((2, 1, 0, 3), (3, 2, 1, 0)), "`block` must be three atoms or more"),
        ((0, 1, 2), ((3, 2, 1, 0), (3, 1, 0, 2)), "CA"),
        ((0, 1, 2), ((3, 2, 1, 4),), r"four different atoms below 4, got \(3, 2, 1, 4\)"),
        ((0, 1, 2), ((3, 2, 2, 1),), "four different atoms"),
    ],
)
def test_wrong_ones_are_refused_by_name(block: tuple[int, ...], rows: tuple[Row, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ZMatrix(block, rows, ("N", "H", "HA", "CA"))


def test_circular_rows_are_refused() -> None:
    with pytest.raises(ArgumentError):
        ZMatrix((0, 1, 2), ((3, 4, 1, 0), (4, 3, 1, 0)))


def test_two_molecules_are_refused_by_name() -> None:
    topology = app.Topology()
    residue = topology.addResidue("TWO", topology.addChain())
    atoms = [topology.addAtom(f"C{i}", app.element.carbon, residue) for i in range(8)]
    for i in (0, 1, 2, 4, 5, 6):
        topology.addBond(atoms[i], atoms[i + 1])
    with pytest.raises(ArgumentError, match=r"one connected molecule.*C4"):
        ZMatrix.from_topology(topology)


@given(st.integers(4, 30), st.randoms(use_true_random=False))
def test_any_connected_molecule(count: int, random) -> None:
    """Random trees with random rings."""
    topology = app.Topology()
    residue = topology.addResidue("ANY", topology.addChain())
    atoms = [topology.addAtom(f"C{i}", app.element.carbon, residue) for i in range(count)]
    for i in range(1, count):
        topology.addBond(atoms[i], atoms[random.randrange(max(0, i - 3), i)])
    for _ in range(2):
        one, other = random.sample(range(count), 2)
        topology.addBond(atoms[one], atoms[other])
    zmatrix = ZMatrix.from_topology(topology)
    assert sorted(zmatrix.order) == list(range(count))
    torch.testing.assert_close(torch.tensor(zmatrix.order).unique(), torch.arange(count))
