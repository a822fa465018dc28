"""Matrix groups and their Lie algebras: which matrices a block of B may hold, and the map r from there to the group.

A block is a matrix M `(..., b, b)` of free numbers. `project` takes it to the Lie algebra, X = project(M); `element`
maps X to the group, r(X), with r(0) = I; `inverse` gives r(X)⁻¹ and `logabsdet` log|det r(X)|, exactly, for every X.

    Cayley:       r(X) = (I - X/2)⁻¹ (I + X/2) = 2 (I - X/2)⁻¹ - I     orthogonal, unitary, symplectic groups
    exponential:  r(X) = exp(X),   log|det r(X)| = tr X                SU(n), and GL(n) without det < 0
    factored:     r(X) = (I + L) (U + exp(D)),   log|det r(X)| = tr X  determinant 1; L + D + U = X, the strictly lower,
                                                                       diagonal and strictly upper parts
    relative:     r(X) = I + X                                         GL(n); X may cross det = 0

Source: Hall (2015), Lie Groups, Lie Algebras, and Representations, chapters 2 and 3; Hairer, Lubich and Wanner (2006),
Geometric Numerical Integration, section IV.8, for Cayley transforms in quadratic groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.linalg.reference import reference_gradients, reference_wanted, transformed

#: Largest block of a Cayley transform that is summed as a series on a CPU: LAPACK costs more per small matrix.
SERIES_SIZE = 64

#: Orders 2^j - 1 of that series, by doubling.
DOUBLINGS = (2, 3, 4)


@dataclass(frozen=True)
class Algebra:
    """A group, by its Lie algebra and a map r from there. `paired`: a block consists of pairs of coordinates i, i + n.
    `least` is the size of the smallest block that can move. `logabsdet` is None where it is 0 for all X; `largest_norm`
    is the largest Frobenius norm of X that r is used for. `product` is A r(g M) for a single block M of all
    coordinates, if that is faster than by r(X)."""

    name: str
    project: Callable[[Tensor], Tensor]
    element: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor, Tensor], Tensor]
    logabsdet: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    paired: bool = False
    least: int = 1
    largest_norm: float | None = None
    product: Callable[[Tensor, Tensor, float], Tensor] | None = None


# --- Lie algebras -------------------------------------------------------------------------------------------------


def skew(matrix: Tensor) -> Tensor:
    """(M - Mᴴ) / 2."""
    return (matrix - matrix.mH) / 2


def traceless(matrix: Tensor) -> Tensor:
    """M - (tr M / b) I."""
    return matrix - linalg.eye_like(matrix) * (_trace(matrix) / matrix.shape[-1])[..., None, None]


def hamiltonian(matrix: Tensor) -> Tensor:
    """J (M + Mᵀ) / 2: J times it is symmetric."""
    return linalg.symplectic_form(matrix + matrix.mT) / 2


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


# --- maps to the group ----------------------------------------------------------------------------------------------


def cayley_reference(x: Tensor) -> Tensor:
    """2 (I - X/2)⁻¹ - I by LAPACK."""
    with linalg.full_precision(x.device):
        exact, identity = linalg.at_least_single(x), linalg.eye_like(linalg.at_least_single(x))
        inverted = linalg.unbatched(torch.linalg.inv_ex, identity - exact / 2)[0]
        return (2 * inverted - identity).to(x.dtype)


def cayley(x: Tensor) -> Tensor:
    """`cayley_reference`, fast: one autograd node and, for small blocks on a CPU, products instead of LAPACK."""
    plain = x.dtype in (torch.float32, torch.float64) and not linalg.autocasts(x.device)
    if not plain or transformed():
        return cayley_reference(x)
    return _Cayley.apply(x)  # type: ignore[no-untyped-call]


class _Cayley(torch.autograd.Function):
    """With K = (I - X/2)⁻¹, dK = K dX K / 2, so ∂X = Kᵀ ∂R Kᵀ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverted = _resolvent(x / 2)
        ctx.save_for_backward(x, inverted)
        result = 2 * inverted
        result.diagonal(dim1=-2, dim2=-1).sub_(1)
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, inverted = ctx.saved_tensors
        if reference_wanted(g):
            return reference_gradients(cayley_reference, ctx.needs_input_grad, (x,), (g,))
        return (inverted.mT @ g @ inverted.mT,)


def cayley_product_reference(base: Tensor, matrix: Tensor, gain: float) -> Tensor:
    """A r(X) with the Cayley transform r and X = g (M - Mᵀ) / 2."""
    return base @ cayley_reference(gain * skew(matrix))


def cayley_product(base: Tensor, matrix: Tensor, gain: float) -> Tensor:
    """`cayley_product_reference`, fast: one autograd node, and two products less, of A `(n, m)` and M `(m, m)`."""
    plain = matrix.dtype in (torch.float32, torch.float64) and not linalg.autocasts(matrix.device)
    if not plain or transformed() or matrix.dim() != 2 or base.dim() != 2 or base.dtype != matrix.dtype:
        return cayley_product_reference(base, matrix, gain)
    return _CayleyProduct.apply(base, matrix, gain)  # type: ignore[no-untyped-call]


class _CayleyProduct(torch.autograd.Function):
    """With K = (I - X/2)⁻¹ and Y = A K, A r(X) = 2 Y - A; ∂X = Yᵀ ∂W Kᵀ, ∂M = g (∂X - ∂Xᵀ) / 2, ∂A = ∂W r(X)ᵀ."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, matrix: Tensor, gain: float) -> Tensor:
        inverted = _resolvent(torch.sub(matrix, matrix.mT).mul_(gain / 4))
        moved = base @ inverted
        ctx.save_for_backward(base, matrix, inverted, moved)
        ctx.gain = gain
        return torch.sub(2 * moved, base)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        base, matrix, inverted, moved = ctx.saved_tensors
        if reference_wanted(g):
            reference, needed = partial(cayley_product_reference, gain=ctx.gain), ctx.needs_input_grad[:2]
            return (*reference_gradients(reference, needed, (base, matrix), (g,)), None)
        needs_base, needs_matrix = ctx.needs_input_grad[:2]
        back = g @ inverted.mT
        grad_matrix = None
        if needs_matrix:
            grad = moved.mT @ back
            grad_matrix = torch.sub(grad, grad.mT).mul_(ctx.gain / 2)
        return 2 * back - g if needs_base else None, grad_matrix, None


def _resolvent(x: Tensor) -> Tensor:
    """(I - X)⁻¹ `(..., b, b)`. On a CPU, by the series

        I + X + ... + X^p = (I + X) (I + X²) (I + X⁴) ...,   p = 2^j - 1,   in 2 (j - 1) products,

    whose remainder X^(p+1) (I - X)⁻¹ has at most the norm s^(p+1) / (1 - s), s = ‖X²‖^½ in the Frobenius norm, if s and
    ‖X‖₂ are below 1: the first p of `DOUBLINGS` for which that is below a quarter of a rounding. Where none is enough,
    and on other devices, which would have to wait for s, by LU."""
    if x.is_cpu and x.shape[-1] > 1 and x.numel() > 0:
        square = x @ x
        size = float(torch.linalg.matrix_norm(square).max()) ** 0.5
        for doublings in DOUBLINGS if x.shape[-1] <= SERIES_SIZE else DOUBLINGS[:2]:
            if size < 1 and size ** (2**doublings) <= (1 - size) * torch.finfo(x.dtype).eps / 4:
                return _series(x, square, doublings)
    return linalg.unbatched(torch.linalg.inv_ex, linalg.eye_like(x) - x)[0]


def _series(x: Tensor, square: Tensor, doublings: int) -> Tensor:
    total = x.clone()
    total.diagonal(dim1=-2, dim2=-1).add_(1)
    power = square
    for index in range(doublings - 1):
        power = power @ power if index else square
        total = total + total @ power
    return total


def exponential(x: Tensor) -> Tensor:
    """exp(X)."""
    with linalg.full_precision(x.device):
        return torch.linalg.matrix_exp(linalg.at_least_single(x)).to(x.dtype)


def relative(x: Tensor) -> Tensor:
    """I + X."""
    return linalg.eye_like(x) + x


def upper_element(x: Tensor) -> Tensor:
    """U + exp(D): the strictly upper part of X, and the exponentials of its diagonal."""
    return x.triu(1) + torch.diag_embed(x.diagonal(dim1=-2, dim2=-1).exp())


def factored(x: Tensor) -> Tensor:
    """(I + L) (U + exp(D))."""
    return relative(x.tril(-1)) @ upper_element(x)


def _factored_inverse(x: Tensor, element: Tensor) -> Tensor:
    return _upper_inverse(x, upper_element(x)) @ _lower_inverse(x, relative(x.tril(-1)))


def _lower_inverse(x: Tensor, element: Tensor) -> Tensor:
    return _triangular_inverse(element, upper=False)


def _upper_inverse(x: Tensor, element: Tensor) -> Tensor:
    return _triangular_inverse(element, upper=True)


def _triangular_inverse(element: Tensor, upper: bool) -> Tensor:
    """By substitution."""
    exact = linalg.at_least_single(element)
    return torch.linalg.solve_triangular(exact, linalg.eye_like(exact), upper=upper).to(element.dtype)


def _inverted(x: Tensor, element: Tensor) -> Tensor:
    """r(X)⁻¹ by LAPACK."""
    exact = linalg.at_least_single(element)
    return linalg.unbatched(torch.linalg.inv_ex, exact)[0].to(element.dtype)


def _slogdet_relative(x: Tensor) -> tuple[Tensor, Tensor]:
    return linalg.slogdet(relative(x))


def _slogdet_exponential(x: Tensor) -> tuple[Tensor, Tensor]:
    trace = _trace(x)
    return torch.ones_like(trace), trace


def _transposed(x: Tensor, element: Tensor) -> Tensor:
    return element.mH


#: so(b), to SO(b).
ORTHOGONAL = Algebra("skew", skew, cayley, _transposed, product=cayley_product)
#: u(b), to U(b).
UNITARY = Algebra("skew-Hermitian", skew, cayley_reference, _transposed)
#: su(b), to SU(b).
SPECIAL_UNITARY = Algebra("traceless skew-Hermitian", lambda m: traceless(skew(m)), exponential, _transposed, least=2)
#: sp(b), to Sp(b); the Cayley transform has poles where X has the eigenvalue 2.
SYMPLECTIC = Algebra(
    "Hamiltonian",
    hamiltonian,
    cayley_reference,
    lambda x, element: linalg.symplectic_form(linalg.symplectic_form(element).mT),
    paired=True,
    least=2,
    largest_norm=1.0,
)
#: sl(b), to SL(b).
UNIT_DETERMINANT = Algebra("traceless", traceless, factored, _factored_inverse, least=2)
#: gl(b), to GL(b), across det = 0.
GENERAL = Algebra("all", lambda m: m, relative, _inverted, _slogdet_relative)
#: gl(b), to the component of I in GL(b).
GENERAL_EXPONENTIAL = Algebra("all", lambda m: m, exponential, lambda x, element: exponential(-x), _slogdet_exponential)
#: Strictly lower triangular matrices, to unit lower ones.
LOWER = Algebra("strictly lower", lambda m: m.tril(-1), relative, _lower_inverse)
#: Upper triangular matrices, to those with a positive diagonal.
UPPER = Algebra("upper", lambda m: m.triu(), upper_element, _upper_inverse, _slogdet_exponential)
