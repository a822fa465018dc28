"""Equivariant layers by generators and Lie algebras: dimensions that theory tells, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import p4torch as p4
from p4torch.properties._math import groups
from p4torch.properties._math.intertwiners import Intertwiners
from p4torch.representations import Representation, cyclic, o3, rotations2d, same_elements, so3, su2, symmetric

#: Products of a few matrices in float64.
EXACT = 1e-11


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def mixing(size: int) -> Tensor:
    """Well-conditioned."""
    return torch.eye(size).double() + 0.2 * drawn(size, size)


def conjugated(representation: Representation) -> Representation:
    """The same in another basis of the features, which no matrix leaves unmixed."""
    basis = mixing(representation.size)
    back = torch.linalg.inv(basis)
    return Representation(basis @ representation.generators @ back, basis @ representation.algebra @ back)


#: Pairs and the dimension of their intertwiners: products of multiplicities, times 2 for complex and 4 for
#: quaternionic types; orbits of pairs for permutations.
SPACES: dict[str, tuple[Representation, Representation, int]] = {
    "so3": (2 * so3(1) + so3(0), 3 * so3(1) + 2 * so3(2) + 2 * so3(0), 8),
    "scattered": (so3(1) + so3(0) + so3(1), so3(0) + so3(1), 3),
    "parity": (o3(1, 1) + o3(1, -1), 2 * o3(1, -1), 2),
    "so2": (rotations2d((1, 1, 0)), rotations2d((1, 2, 0, 1)), 2 * 4 + 1),
    "quaternions": (2 * su2(0.5), su2(0.5), 2 * 4),
    "real-spins": (su2(1), su2(1), 4),  # twice a real type
    "product": (so3(1) * so3(1), so3(1), 1),
    "symmetric": (symmetric(4), symmetric(4), 2),
    "pairs": (symmetric(4) * symmetric(4), symmetric(4) * symmetric(4), 15),  # Bell's number of 4
    "ring": (cyclic(5), cyclic(5), 5),
    "signs": (Representation([-torch.eye(2)]), Representation([torch.diag(torch.tensor([1.0, -1.0, -1.0]))]), 4),
}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", SPACES)
def test_spaces_have_the_dimension_of_theory(name: str, mixed: bool) -> None:
    left, right, dimension = SPACES[name]
    if mixed and left.size * right.size <= 100:
        left, right = conjugated(left), conjugated(right)
    base = drawn(2, left.size, right.size)
    perturbation = p4.LinearSubspace(base, representation=(left, right))
    assert perturbation.intertwiners.dimension == dimension
    assert perturbation.a.shape == (2, dimension)
    projected = perturbation.project(base)
    for one, other in zip(*same_elements([left, right], 8, torch.Generator().manual_seed(0)), strict=True):
        torch.testing.assert_close(one @ projected, projected @ other, rtol=0, atol=EXACT * float(one.norm() ** 2))
    torch.testing.assert_close(perturbation.project(projected), projected, rtol=0, atol=EXACT)
    residual = base - projected
    for member in perturbation.intertwiners(torch.eye(dimension).double()):
        torch.testing.assert_close(member.norm(), torch.ones(()).double(), rtol=0, atol=EXACT)
        assert float((residual * member).sum((-2, -1)).abs().max()) <= EXACT


@pytest.mark.parametrize("seed", range(3))
def test_generators_and_all_elements_make_the_same_space(seed: int) -> None:
    """Of the symmetric group, in a basis of its own: the projection is the mean over the group."""
    torch.manual_seed(seed)
    orders = torch.tensor(list(itertools.permutations(range(3))))
    orthogonal = torch.linalg.qr(drawn(3, 3))[0]
    elements = orthogonal @ torch.eye(3).double()[orders] @ orthogonal.mT
    two = orthogonal @ symmetric(3).generators @ orthogonal.mT
    base = drawn(3, 3)
    left, right = groups.representations(elements, 3, 3)
    expected = groups.reynolds(base, left, right)
    for options in ({"generators": two}, {"generators": [*two]}, {"generators": (two, two)}):
        got = p4.LinearSubspace(base.clone(), **options).project(base)
        torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)
    got = p4.LinearSubspace(base, group=elements).project(base)
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)


def test_generators_and_algebra_together() -> None:
    """O(3): the cross product's parity keeps vectors and pseudovectors apart."""
    base = drawn(6, 3)
    both = o3(1, 1) + o3(1, -1)
    options = {"generators": (both.generators, o3(1, -1).generators), "algebra": (both.algebra, o3(1, -1).algebra)}
    projected = p4.LinearSubspace(base, **options).project(base)
    assert float(projected[:3].abs().max()) == 0 and float(projected[3:].abs().max()) > 0
    alone = p4.LinearSubspace(base, algebra=options["algebra"])
    assert alone.intertwiners.dimension == 2


def test_single_precision_generators_find_the_space() -> None:
    """Rounded to float32, in a basis that mixes all."""
    exact = conjugated(2 * so3(1) + so3(0))
    rounded = p4.LinearSubspace(torch.eye(7), algebra=exact.algebra.float())
    assert rounded.intertwiners.dimension == 5


def test_a_step_moves_every_space_alike() -> None:
    """‖ΔA‖₂ of a step of signs, relative to ‖A‖, is about 8 η for small and large spaces. Less evenly spread ones, such
    as the mean over all features, move further."""
    rate = 1e-3
    for representation in (10 * so3(1), cyclic(64), 64 * rotations2d(0), symmetric(64)):
        base = torch.eye(representation.size, dtype=torch.float64)
        perturbation = p4.LinearSubspace(base, representation=representation)
        with torch.no_grad():
            perturbation.a.add_(rate * (torch.randint(0, 2, perturbation.a.shape) * 2 - 1))
        moved = float(torch.linalg.matrix_norm((perturbation(base) - base).detach(), ord=2)) / rate
        assert 8 / 4 < moved < 8 * 4


def test_many_copies_need_one_small_basis() -> None:
    """64 vectors: 4,096 directions, one matrix of 9 numbers."""
    made = Intertwiners(*[(64 * so3(1)).matrices] * 2, eps=1e-16)
    assert made.dimension == 64**2
    assert sum(value.numel() for value in made.parameters()) == 9


def test_the_basis_is_a_part_of_the_state_and_stays_double() -> None:
    """B means something with it only: other libraries of linear algebra may give another one."""
    options: dict[str, Any] = {"representation": 2 * so3(1)}
    one, other = (p4.LinearSubspace(torch.eye(6), **options) for _ in range(2))
    with torch.no_grad():
        one.a.normal_()
        for value in other.intertwiners.parameters():
            value.neg_()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(torch.eye(6)), other(torch.eye(6)))
    assert {value.dtype for value in one.half().intertwiners.parameters()} == {torch.float64}


EYE = torch.eye(3).unsqueeze(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generators": torch.eye(3)}, r"`generators` must be a tensor \(g, n, n\) or a list of matrices"),
        ({"generators": torch.eye(2).unsqueeze(0)}, r"`representation` must be of 3 outputs and 3 inputs, got one of"),
        ({"generators": 0 * EYE}, "`generators` must be of nonsingular matrices"),
        ({"generators": (EYE, EYE.expand(2, 3, 3))}, "`representations` must be of one group"),
        ({"generators": (EYE, EYE), "algebra": EYE}, "`generators, algebra` must be both pairs"),
        ({"representation": EYE}, "`representation` must be a Representation, or two of them, got Tensor"),
        ({"representation": (so3(1), so3(1), so3(1))}, "`representation` must be a Representation, or two of them"),
        ({"representation": so3(1), "generators": EYE}, "exactly one of them, .* got generators and representation"),
        ({"representation": so3(1), "rank": 2}, "`rank` must be left out for representation, whose coordinates train"),
        ({"representation": so3(1), "scale": 0.0}, "`scale` must be None or a positive number"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.LinearSubspace(torch.eye(3), **options)
