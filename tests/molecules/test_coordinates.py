"""Internal and mixed coordinates: there and back, their volume, and what degenerate frames do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.molecules.coordinates import MOLECULES, chart_logabsdet, handedness, md_frames, moved, pairwise, pdb
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules import InternalCoordinates, MixedCoordinates, ZMatrix, chiral_centres, wrong_chirality_share
from p4torch.molecules.shape import ShapeCoordinates

#: What is asked of double precision: nm, and of the logarithm of the Jacobian.
ROUND_TRIP, JACOBIAN = 1e-8, 1e-8
#: Single precision: a chain of a dozen placements, each to 1e-7 of its size, in nm; and for log|det|.
SINGLE_ROUND_TRIP, SINGLE_JACOBIAN = 2e-5, 2e-2
#: log|det| of a direction and of the way back.
THERE_AND_BACK = 1e-9
#: Derivatives against finite differences of step 1e-6 nm, relative: coordinates change by 1e3 and more a nm.
DERIVATIVE = 1e-4


def internal(name: str, frames: Tensor) -> InternalCoordinates:
    return InternalCoordinates(ZMatrix.from_topology(pdb(name).topology, block="chain"), frames)


def mixed(name: str, frames: Tensor) -> MixedCoordinates:
    alanine = name == "alanine-dipeptide"
    zmatrix = ZMatrix.alanine_dipeptide() if alanine else ZMatrix.from_topology(pdb(name).topology)
    return MixedCoordinates(zmatrix, frames)


KINDS = [internal, mixed]
Make = Callable[[str, Tensor], ShapeCoordinates]


def check_round_trip(coordinates: ShapeCoordinates, x: Tensor, tolerance: float) -> None:
    z, logabsdet = coordinates(x)
    back, other = coordinates.inverse(z)
    assert (pairwise(back) - pairwise(x)).abs().max() <= tolerance
    assert torch.equal(handedness(back) > 0, handedness(x) > 0) or float(handedness(x).abs().min()) < tolerance
    torch.testing.assert_close(logabsdet, -other, rtol=0, atol=THERE_AND_BACK if x.dtype == torch.float64 else 1e-2)
    again, _ = coordinates(moved(x.double()).to(x.dtype))
    off = again - z
    off[..., coordinates.layout.torsions] = (
        torch.remainder(off[..., coordinates.layout.torsions] + torch.pi, 2 * torch.pi) - torch.pi
    )
    assert off.abs().max() <= 1e4 * tolerance  # in standard deviations, of 1e-3 nm and more


@pytest.mark.parametrize("name", MOLECULES)
@pytest.mark.parametrize("make", KINDS)
def test_there_and_back(make: Make, name: str) -> None:
    x = md_frames(name)
    check_round_trip(make(name, x), x, ROUND_TRIP)


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS)
def test_ten_thousand_frames_there_and_back(make: Make) -> None:
    x = md_frames("alanine-dipeptide", frames=10_000)
    check_round_trip(make("alanine-dipeptide", x), x, ROUND_TRIP)


@pytest.mark.parametrize("make", KINDS)
def test_single_precision_there_and_back_and_in_training(make: Make) -> None:
    x = md_frames("alanine-dipeptide")
    coordinates = make("alanine-dipeptide", x)
    z, logabsdet = coordinates(x.float())
    wanted, exact = coordinates(x)
    assert z.dtype == logabsdet.dtype == torch.float32
    torch.testing.assert_close(logabsdet.double(), exact, rtol=0, atol=SINGLE_JACOBIAN)
    back, _ = coordinates.inverse(z)
    assert (pairwise(back.double()) - pairwise(x)).abs().max() <= SINGLE_ROUND_TRIP
    noise = torch.randn_like(z).requires_grad_()
    back, logabsdet = coordinates.inverse(noise)
    (back.square().sum() + logabsdet.sum()).backward()
    assert noise.grad is not None and noise.grad.isfinite().all() and noise.grad.any()
    assert wanted.isfinite().all()


@pytest.mark.parametrize("name", ["alanine-dipeptide", "proline-dipeptide"])
@pytest.mark.parametrize("make", KINDS)
def test_the_volume_is_that_of_all_coordinates(make: Make, name: str) -> None:
    x = md_frames(name)
    coordinates = make(name, x)
    z, logabsdet = coordinates(x[:8])
    result = torch.stack([chart_logabsdet(coordinates.inverse, row) for row in z])
    torch.testing.assert_close(-logabsdet, result, rtol=0, atol=JACOBIAN)


@pytest.mark.parametrize("make", KINDS)
def test_first_and_second_derivatives_of_both_directions(make: Make) -> None:
    x = moved(md_frames("alanine-dipeptide"))[:1]
    coordinates = make("alanine-dipeptide", md_frames("alanine-dipeptide"))
    z = coordinates(x)[0].requires_grad_()
    for direction, point in ((coordinates, x.requires_grad_()), (coordinates.inverse, z)):
        assert torch.autograd.gradcheck(direction, point, fast_mode=True, atol=DERIVATIVE, rtol=DERIVATIVE)
        assert torch.autograd.gradgradcheck(direction, point, fast_mode=True, atol=DERIVATIVE, rtol=DERIVATIVE)


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS)
def test_the_volume_of_a_hundred_frames(make: Make) -> None:
    x = md_frames("alanine-dipeptide", frames=1000)[::10]
    coordinates = make("alanine-dipeptide", x)
    z, logabsdet = coordinates(x)
    result = torch.stack([chart_logabsdet(coordinates.inverse, row) for row in z])
    torch.testing.assert_close(-logabsdet, result, rtol=0, atol=JACOBIAN)


def test_mixed_coordinates_are_standardised() -> None:
    x = md_frames("alanine-dipeptide", frames=1000)
    weights = torch.rand(1000, dtype=torch.float64)
    coordinates = MixedCoordinates(ZMatrix.alanine_dipeptide(), x, weights)
    z, layout, share = coordinates(x)[0], coordinates.layout, weights / weights.sum()
    assert z.shape == (1000, 60) and (len(layout.block), len(layout.torsions)) == (9, 17)
    linear = z[:, : layout.torsions.start]
    mean = share @ linear
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-9, rtol=0)
    spread = (share @ (linear - mean).square()).sqrt()
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-6, rtol=0)
    block = linear[:, list(layout.block)]
    covariance = (share[:, None] * block).T @ block
    torch.testing.assert_close(covariance, torch.eye(9, dtype=torch.float64), atol=1e-6, rtol=0)
    torsions = z[:, list(layout.torsions)]
    assert (torsions >= -torch.pi).all() and (torsions < torch.pi).all()
    near_cut = (torsions.abs() > 0.95 * torch.pi).float().mean(0)
    assert near_cut.max() < 0.05


def test_a_checkpoint_brings_all_constants() -> None:
    x = md_frames("alanine-dipeptide")
    coordinates, empty = mixed("alanine-dipeptide", x), MixedCoordinates(ZMatrix.alanine_dipeptide())
    with pytest.raises(ArgumentError, match="`frames` must be given"):
        empty(x)
    empty.load_state_dict(coordinates.state_dict())
    for one, other in zip(empty(x), coordinates(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("make", KINDS)
def test_degenerate_frames_are_flagged_and_stay_alone(make: Make) -> None:
    x = md_frames("alanine-dipeptide")[:5].clone()
    coordinates = make("alanine-dipeptide", md_frames("alanine-dipeptide"))
    wanted = coordinates(x)
    broken = x.clone()
    broken[1, 0] = broken[1, 1]  # a bond of no length
    broken[2, 18] = broken[2, 16] + (broken[2, 16] - broken[2, 14])  # three atoms in a line
    broken[2, 19] = broken[2, 18] + (broken[2, 18] - broken[2, 16])
    broken.requires_grad_()
    z, logabsdet = coordinates(broken)
    assert z.isfinite().all() and logabsdet.isfinite().all()
    flags = coordinates.degenerate(broken)
    assert flags.tolist() == [False, True, True, False, False]
    fine = [0, 3, 4]
    for one, other in zip((z, logabsdet), wanted, strict=True):
        torch.testing.assert_close(one[fine], other[fine])
    (z.square().sum() + logabsdet.sum()).backward()
    assert broken.grad is not None and broken.grad[fine].isfinite().all()
    lost = x.clone()
    lost[1, 3, 0] = torch.nan
    assert coordinates.degenerate(lost).tolist() == [False, True, False, False, False]
    torch.testing.assert_close(coordinates(lost)[0][fine], wanted[0][fine])


@pytest.mark.parametrize("make", KINDS)
def test_impossible_points_are_flagged_and_finite(make: Make) -> None:
    coordinates = make("alanine-dipeptide", md_frames("alanine-dipeptide"))
    z = torch.zeros(3, 60, dtype=torch.float64)
    z[1, coordinates.layout.bonds[0]] = -1e4
    z[2, coordinates.layout.angles[0]] = 1e4
    z.requires_grad_()
    x, logabsdet = coordinates.inverse(z)
    assert x.isfinite().all() and logabsdet.isfinite().all()
    assert coordinates.outside(z).tolist() == [False, True, True]
    (x.square().sum() + logabsdet.sum()).backward()
    assert z.grad is not None and z.grad.isfinite().all()


def test_mirror_forms_are_counted() -> None:
    topology = pdb("alanine-dipeptide").topology
    x = md_frames("alanine-dipeptide")[:10].clone()
    centres = chiral_centres(topology)
    assert [centre.centre for centre in centres] == [8]
    assert wrong_chirality_share(x, centres) == 0.0
    x[:3] *= torch.tensor([1.0, 1.0, -1.0])
    assert wrong_chirality_share(x, centres) == pytest.approx(0.3)
    weights = torch.tensor([2.0] * 3 + [1.0] * 7)
    assert wrong_chirality_share(x, centres, weights) == pytest.approx(6 / 13)
    assert [c.centre for c in chiral_centres(topology, x[5])] == [8]


def test_bad_frames_are_refused_by_name() -> None:
    x = md_frames("alanine-dipeptide")
    zmatrix = ZMatrix.alanine_dipeptide()
    with pytest.raises(ArgumentError, match="shape"):
        MixedCoordinates(zmatrix, x[:, :20])
    with pytest.raises(ArgumentError, match="weights"):
        MixedCoordinates(zmatrix, x, torch.ones(3))
    lost = x.clone()
    lost[4, 0] = torch.nan
    with pytest.raises(ArgumentError, match="frames"):
        MixedCoordinates(zmatrix, lost)
    with pytest.raises(ArgumentError, match="block of three atoms"):
        InternalCoordinates(zmatrix, x)
    with pytest.raises(ArgumentError, match="shape"):
        mixed("alanine-dipeptide", x)(x[..., :21, :])
