"""Lie algebras and the maps to their groups: what is projected, mapped and inverted; the series of the transform."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p4torch import linalg
from p4torch.linalg import matrix_groups as algebras
from p4torch.linalg.matrix_groups import Algebra

#: A few solves and exponentials of small matrices in float64.
EXACT = 1e-12
#: Roundings of a sum of at most 16 powers in float64, relative to the largest entry, which is about 1.
ROUNDINGS = 32

ALGEBRAS: dict[str, Algebra] = {
    "orthogonal": algebras.ORTHOGONAL,
    "unitary": algebras.UNITARY,
    "special unitary": algebras.SPECIAL_UNITARY,
    "symplectic": algebras.SYMPLECTIC,
    "unit determinant": algebras.UNIT_DETERMINANT,
    "general": algebras.GENERAL,
    "exponential": algebras.GENERAL_EXPONENTIAL,
}


def blocks(name: str, size: float = 0.5) -> Tensor:
    dtype = torch.complex128 if "unitary" in name else torch.float64
    return ALGEBRAS[name].project(size * torch.randn(3, 4, 4, dtype=dtype))


@pytest.mark.parametrize("name", [name for name in ALGEBRAS if name != "symplectic"])
def test_what_lies_in_the_algebra_stays(name: str) -> None:
    x = blocks(name)
    torch.testing.assert_close(ALGEBRAS[name].project(x), x, rtol=0, atol=EXACT)


def test_hamiltonian_matrices() -> None:
    turned = linalg.symplectic_form(blocks("symplectic"))
    torch.testing.assert_close(turned, turned.mT, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", ALGEBRAS)
def test_elements_inverses_and_determinants(name: str) -> None:
    algebra, x = ALGEBRAS[name], blocks(name)
    element = algebra.element(x)
    eye = torch.eye(4, dtype=x.dtype).expand_as(x)
    torch.testing.assert_close(algebra.element(torch.zeros_like(x)), eye, rtol=0, atol=EXACT)
    torch.testing.assert_close(algebra.inverse(x, element) @ element, eye, rtol=0, atol=EXACT)
    sign, logabsdet = torch.linalg.slogdet(element)
    expected = (torch.ones_like(logabsdet), 0 * logabsdet) if algebra.logabsdet is None else algebra.logabsdet(x)
    torch.testing.assert_close(logabsdet, expected[1], rtol=0, atol=EXACT)
    if name != "unitary":  # whose determinants are phases
        torch.testing.assert_close(sign.real, expected[0], rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("orthogonal", lambda r: r.mT @ r - linalg.eye_like(r)),
        ("unitary", lambda r: r.mH @ r - linalg.eye_like(r)),
        ("special unitary", lambda r: torch.linalg.det(r) - 1),
        ("symplectic", lambda r: r.mT @ linalg.symplectic_form(r) - linalg.symplectic_form(linalg.eye_like(r))),
        ("unit determinant", lambda r: torch.linalg.det(r) - 1),
    ],
)
def test_the_group_is_what_it_says(name: str, error: object) -> None:
    element = ALGEBRAS[name].element(blocks(name))
    assert error(element).abs().max() <= EXACT  # type: ignore[operator]


# --- the series ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.35, 0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("b", [2, 16, algebras.SERIES_SIZE, algebras.SERIES_SIZE + 1])
def test_the_transform_against_lapack(b: int, size: float, dtype: torch.dtype) -> None:
    """Whatever order is taken: what is left out is less than a rounding."""
    x = algebras.skew(torch.randn(3, b, b, dtype=torch.float64))
    x = (2 * size * x / torch.linalg.matrix_norm(x, keepdim=True)).to(dtype)
    expected = algebras.cayley_reference(x.double())
    got = algebras.cayley(x).double()
    assert (got - expected).abs().max() <= ROUNDINGS * torch.finfo(dtype).eps


@pytest.mark.parametrize("doublings", algebras.DOUBLINGS)
def test_the_remainder_of_the_series(doublings: int) -> None:
    """‖X^(p+1) (I - X)⁻¹‖ <= s^(p+1) / (1 - s) with p + 1 = 2^j and s = ‖X²‖^½, and the first powers are there."""
    x = algebras.skew(torch.randn(5, 5, dtype=torch.float64))
    x = 0.5 * x / torch.linalg.matrix_norm(x)
    exact = torch.linalg.inv(torch.eye(5, dtype=torch.float64) - x)
    error = exact - algebras._series(x, x @ x, doublings)
    remainder = torch.linalg.matrix_power(x, 2**doublings) @ exact
    torch.testing.assert_close(error, remainder, rtol=0, atol=EXACT)
    size = torch.linalg.matrix_norm(x @ x).sqrt()
    assert torch.linalg.matrix_norm(error, ord=2) <= size ** (2**doublings) / (1 - size)


def test_derivatives_of_the_transform() -> None:
    for size in (0.01, 1.0):
        x = (size * algebras.skew(torch.randn(2, 3, 3, dtype=torch.float64))).requires_grad_()
        assert torch.autograd.gradcheck(algebras.cayley, x) and torch.autograd.gradgradcheck(algebras.cayley, x)
