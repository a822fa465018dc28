"""Representations: what the ready ones are, sums and products, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import p4torch as p4
from p4torch.representations import (
    Representation,
    cyclic,
    o3,
    permutations,
    rotations2d,
    same_elements,
    so3,
    su2,
    symmetric,
)

#: A few products and exponentials in float64.
EXACT = 1e-11


def commutator(one: Tensor, other: Tensor) -> Tensor:
    return one @ other - other @ one


@pytest.mark.parametrize("made", [*(so3(degree) for degree in range(5)), *(su2(twice / 2) for twice in range(5))])
def test_algebras_of_rotations_close(made: Representation) -> None:
    """[X, Y] = Z, and so around."""
    x, y, z = made.algebra
    for one, other, third in ((x, y, z), (y, z, x), (z, x, y)):
        torch.testing.assert_close(commutator(one, other), third, rtol=0, atol=EXACT)
        torch.testing.assert_close(one, -one.mT, rtol=0, atol=EXACT)


@pytest.mark.parametrize("twice", range(1, 5))
def test_the_casimir_operator_says_the_spin(twice: int) -> None:
    """-Σ X² = j (j + 1), for both groups; a turn by 2π is -1 for half-integer spins."""
    spin = twice / 2
    for made in (su2(spin), *((so3(twice // 2),) if twice % 2 == 0 else ())):
        expected = spin * (spin + 1) * torch.eye(made.size, dtype=torch.float64)
        torch.testing.assert_close(-(made.algebra @ made.algebra).sum(0), expected, rtol=0, atol=EXACT)
        turn = torch.linalg.matrix_exp(2 * torch.pi * made.algebra[0])
        torch.testing.assert_close(turn, (-1) ** twice * torch.eye(made.size).double(), rtol=0, atol=EXACT)


def test_degree_one_is_the_vector() -> None:
    quarter = torch.linalg.matrix_exp(torch.pi / 2 * so3(1).algebra)
    x, y, z = torch.eye(3, dtype=torch.float64)
    for turn, start, end in zip(quarter, (y, z, x), (z, x, y), strict=True):
        torch.testing.assert_close(turn @ start, end, rtol=0, atol=EXACT)


def test_turns_of_the_plane_by_frequency() -> None:
    made = rotations2d((0, 1, 3))
    angle = torch.tensor(0.4, dtype=torch.float64)
    got = torch.linalg.matrix_exp(angle * made.algebra[0])
    blocks = [torch.ones(1, 1).double()]
    for frequency in (1, 3):
        cosine, sine = (frequency * angle).cos(), (frequency * angle).sin()
        blocks.append(torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])]))
    torch.testing.assert_close(got, torch.block_diag(*blocks), rtol=0, atol=EXACT)
    assert rotations2d(2).size == 2


def test_permutations_by_their_orders() -> None:
    x = torch.randn(4, dtype=torch.float64)
    assert torch.equal(permutations([[2, 0, 1, 3]]).generators[0] @ x, x[[2, 0, 1, 3]])
    assert torch.equal(cyclic(4).generators[0] @ x, x.roll(-1))
    elements = {tuple(element.argmax(-1).tolist()) for element in same_elements([symmetric(3)], 200)[0]}
    assert elements == set(itertools.permutations(range(3)))


def test_parity_is_a_generator() -> None:
    assert torch.equal(o3(1, -1).generators[0], -torch.eye(3).double())
    assert torch.equal(o3(2, 1).generators[0], torch.eye(5).double())


# --- sums, multiples, products --------------------------------------------------------------------------------------

PAIRS: dict[str, tuple[Representation, Representation]] = {
    "rotations": (so3(1), so3(2)),
    "parity": (o3(1, -1), o3(0, 1)),
    "permutations": (symmetric(3), symmetric(3).trivial(2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_made_of_others_has_their_elements(name: str) -> None:
    one, other = PAIRS[name]
    made = [one, other, one + other, 3 * one, one * 3, one * other, one.trivial(2)]
    parts = same_elements(made, 5, torch.Generator().manual_seed(0))
    for g, h, total, multiple, again, product, trivial in zip(*parts, strict=True):
        torch.testing.assert_close(total, torch.block_diag(g, h), rtol=0, atol=EXACT)
        torch.testing.assert_close(multiple, torch.block_diag(g, g, g), rtol=0, atol=EXACT)
        assert torch.equal(multiple, again)
        torch.testing.assert_close(product, torch.kron(g.contiguous(), h.contiguous()), rtol=0, atol=EXACT)
        torch.testing.assert_close(trivial, torch.eye(2).double(), rtol=0, atol=EXACT)


def test_the_clebsch_gordan_series() -> None:
    """1 ⊗ 1 = 0 + 1 + 2: one intertwiner to each of them, none to degree 3."""
    product = so3(1) * so3(1)
    for degree in range(3):
        base = torch.ones(2 * degree + 1, 9)
        assert p4.LinearSubspace(base, representation=(so3(degree), product)).intertwiners.dimension == 1
    with pytest.raises(p4.ArgumentError, match="one that some matrix but 0 commutes with"):
        p4.LinearSubspace(torch.ones(7, 9), representation=(so3(3), product))


# --- what is refused ------------------------------------------------------------------------------------------------

EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Representation, "`generators, algebra` must be given, one of them at least, got none"),
        (lambda: Representation(EYE), r"`generators` must be a tensor \(g, n, n\) or a list of matrices, got \(2, 2\)"),
        (lambda: Representation([EYE, torch.eye(3)]), r"`generators` must be of square matrices of one size"),
        (lambda: Representation([torch.ones(2, 3)]), r"of square matrices of one size, got \(2, 3\)"),
        (
            lambda: Representation([EYE], [torch.eye(3)]),
            "`algebra` must be of matrices of size 2, as generators, got 3",
        ),
        (lambda: Representation(algebra=[EYE * torch.nan]), "`algebra` must be real and finite, got inf or nan"),
        (lambda: Representation([EYE * 1j]), "`generators` must be real and finite, got torch.complex64"),
        (lambda: Representation([EYE, torch.ones(2, 2)]), "of nonsingular matrices, got a singular one, number 1"),
        (lambda: so3(1) + symmetric(3), "`representations` must be of one group, .* got 0 and 3 and 2 and 0"),
        (lambda: so3(1) * rotations2d(1), "`representations` must be of one group"),
        (lambda: 0 * so3(1), "`count` must be an integer >= 1, got 0"),
        (lambda: so3(-1), "`degree` must be an integer >= 0, got -1"),
        (lambda: o3(1, 0), "`parity` must be 1 or -1, got 0"),
        (lambda: su2(0.3), "`spin` must be 0, 1/2, 1, 3/2, ..., got 0.3"),
        (lambda: rotations2d(()), "`frequencies` must be one at least, got none"),
        (lambda: permutations([[0, 0]]), "`orders` must be different integers from 0 to 1"),
        (lambda: permutations([0, 1]), r"`orders` must be one permutation a row, \(g, n\)"),
        (lambda: symmetric(1), "`size` must be an integer >= 2"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        make()
