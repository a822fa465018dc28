"""Z-matrices from topologies, and what they refuse."""

import mdtraj
import pytest
import torch
from openmm import app
from tests.molecules.coordinates import MOLECULES, md_frames, pdb

from p4torch.errors import ArgumentError
from p4torch.molecules.geometry import torsion
from p4torch.molecules.zmatrix import ZMatrix

#: Radians. A torsion that carries no rotation about a bond spreads less than this at 300 K.
NARROW = 0.5

PUBLISHED_BLOCK = (6, 8, 9, 10, 14)


@pytest.mark.parametrize("block", ["centre", "chain"])
@pytest.mark.parametrize("name", MOLECULES)
def test_every_atom_is_placed_once_from_atoms_before(name: str, block: str) -> None:
    topology = pdb(name).topology
    zmatrix = ZMatrix.from_topology(topology, block)
    assert sorted(zmatrix.order) == list(range(topology.getNumAtoms()))
    for place, row in enumerate(zmatrix.rows, len(zmatrix.block)):
        assert set(row[1:]) <= set(zmatrix.order[:place])
    bonds = {frozenset((one.index, other.index)) for one, other in topology.bonds()}
    assert all(frozenset(row[:2]) in bonds for row in zmatrix.rows)
    assert zmatrix == ZMatrix.from_topology(topology, block)
    assert zmatrix == ZMatrix.from_topology(mdtraj.Topology.from_openmm(topology), block)


def test_siblings_share_one_rotation() -> None:
    name = "alanine-dipeptide"
    zmatrix, x = ZMatrix.from_topology(pdb(name).topology), md_frames(name)
    shared = [row for row in zmatrix.rows if row[3] in {other[0] for other in zmatrix.rows if other[1] == row[1]}]
    assert len(shared) == 10
    for d, c, b, a in shared:
        phi = torsion(x[:, a], x[:, b], x[:, c], x[:, d])
        resultant = torch.polar(torch.ones_like(phi), phi).mean().abs()
        assert float((-2 * resultant.log()).sqrt()) < NARROW


def test_alanine_dipeptide_has_the_published_block_and_torsions() -> None:
    published = ZMatrix.alanine_dipeptide()
    automatic = ZMatrix.from_topology(pdb("alanine-dipeptide").topology)
    assert published.block == automatic.block == PUBLISHED_BLOCK
    assert published.names == automatic.names
    assert len(published.rows) == 17
    for zmatrix in (published, automatic):
        assert {(4, 6, 8, 14), (16, 14, 8, 6)} <= set(zmatrix.rows)
        assert len(zmatrix.levels) == 4


def test_a_block_of_ones_own() -> None:
    topology = pdb("alanine-dipeptide").topology
    assert ZMatrix.from_topology(topology, [0, 10, 21]).block == (0, 10, 21)
    assert len(ZMatrix.from_topology(topology, range(22)).rows) == 0


def _two_parts() -> app.Topology:
    topology = app.Topology()
    chain = topology.addChain()
    for _ in range(2):
        residue = topology.addResidue("HOH", chain)
        oxygen, *hydrogens = (topology.addAtom(n, app.Element.getBySymbol(n[0]), residue) for n in ("O", "H1", "H2"))
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)
    return topology


def test_water_has_a_block_and_no_rows() -> None:
    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    h1, o, h2 = (topology.addAtom(n, app.Element.getBySymbol(n[0]), residue) for n in ("H1", "O", "H2"))
    topology.addBond(o, h1)
    topology.addBond(h2, o)
    assert ZMatrix.from_topology(topology, "chain") == ZMatrix((0, 1, 2), (), ("HOH1-H1", "HOH1-O", "HOH1-H2"))


NAMES = ("A", "B", "C", "D", "E")
ROW = (3, 2, 1, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZMatrix.from_topology(_two_parts()), "`topology`.*one connected.*HOH1-O.*HOH2-O"),
        (lambda: ZMatrix.from_topology("peptide"), "`topology`.*str"),
        (lambda: ZMatrix.from_topology(app.Topology()), "`topology`.*3 atoms"),
        (lambda: ZMatrix.from_topology(pdb("alanine-dipeptide").topology, "middle"), "`block`.*middle"),
        (lambda: ZMatrix.from_topology(pdb("alanine-dipeptide").topology, [1, 1, 2]), "`block`"),
        (lambda: ZMatrix((0, 1), ()), "`block`"),
        (lambda: ZMatrix((0, 1, 2), (ROW,), NAMES), "`rows`.*none for E"),
        (lambda: ZMatrix((0, 1, 2), (ROW, ROW), NAMES), "`rows`.*D twice"),
        (lambda: ZMatrix((0, 1, 2), (ROW, (2, 0, 1, 3)), NAMES), "`rows`.*C twice"),
        (lambda: ZMatrix((0, 1, 2), ((3, 4, 1, 0), (4, 3, 1, 0)), NAMES), "`rows`.*before.*D, E"),
        (lambda: ZMatrix((0, 1, 2), ((3, 2, 2, 0),)), "`rows`.*different"),
        (lambda: ZMatrix((0, 1, 2), ((3, 2, 1, 9),)), "`rows`.*below 4"),
    ],
)
def test_bad_input_names_argument_and_atoms(make: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()  # type: ignore[operator]
