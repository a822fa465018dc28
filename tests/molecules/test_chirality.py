"""Mirror forms of test molecules."""

import mdtraj
import pytest
import torch
from tests.molecules.coordinates import MOLECULES, md_frames, pdb, positions
from tests.molecules.small_molecules import SMALL, small_molecule

from p4torch.errors import ArgumentError
from p4torch.molecules.chirality import chiral_centres, has_wrong_chirality, inverted, wrong_chirality_share

#: x, y, -z
MIRROR = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)

#: Weighted shares are sums of some hundred numbers.
ROUNDING = 1e-12


@pytest.mark.parametrize("name", MOLECULES)
def test_molecules_are_l_and_their_mirror_images_d(name: str) -> None:
    x = positions(name).expand(4, -1, -1)
    centres = chiral_centres(pdb(name).topology)
    residues = {"alanine-tetrapeptide": 3, "met-enkephalin": 3}.get(name, 1)
    assert len(centres) == residues
    assert wrong_chirality_share(x, centres) == 0
    assert has_wrong_chirality(x * MIRROR, centres).all()
    assert inverted(x * MIRROR, centres).shape == (4, residues)


def test_a_reference_says_which_form_is_wanted() -> None:
    topology, x = mdtraj.Topology.from_openmm(pdb("proline-dipeptide").topology), positions("proline-dipeptide")
    centres = chiral_centres(topology, x * MIRROR)
    assert [centre.centre for centre in centres] == [centre.centre for centre in chiral_centres(topology)]
    assert has_wrong_chirality(x, centres)
    assert not has_wrong_chirality(x * MIRROR, centres)


@pytest.mark.parametrize("name", SMALL)
def test_molecules_without_a_chiral_centre_have_none(name: str) -> None:
    topology, x = small_molecule(name)
    assert chiral_centres(topology, x) == chiral_centres(topology) == ()


def test_share_is_weighted() -> None:
    frames = md_frames("alanine-dipeptide")[:4]
    x = torch.cat([frames, frames[:1] * MIRROR])
    centres = chiral_centres(pdb("alanine-dipeptide").topology)
    assert wrong_chirality_share(x, centres) == pytest.approx(1 / 5, abs=ROUNDING)
    assert wrong_chirality_share(x, centres, torch.tensor([1.0, 1, 1, 1, 4])) == pytest.approx(1 / 2, abs=ROUNDING)


def test_a_broken_frame_counts_as_inverted() -> None:
    x = positions("alanine-dipeptide")
    assert has_wrong_chirality(x * float("nan"), chiral_centres(pdb("alanine-dipeptide").topology))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda c, x: has_wrong_chirality(x, ()), "centres"),
        (lambda c, x: wrong_chirality_share(x, c), "x"),
        (lambda c, x: wrong_chirality_share(x.expand(2, -1, -1), c, torch.ones(3)), "weights"),
        (lambda c, x: wrong_chirality_share(x.expand(2, -1, -1), c, -torch.ones(2)), "weights"),
        (lambda c, x: chiral_centres(pdb("alanine-dipeptide").topology, x[1:]), "reference"),
        (lambda c, x: chiral_centres(pdb("alanine-dipeptide").topology, x.expand(2, -1, -1)), "reference"),
    ],
)
def test_bad_input_names_the_argument(make: object, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        make(chiral_centres(pdb("alanine-dipeptide").topology), positions("alanine-dipeptide"))  # type: ignore[operator]
