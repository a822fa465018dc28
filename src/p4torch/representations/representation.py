"""A representation: the matrices of what generates a group, with sums, multiples and products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from p4torch._options import check_integer, is_integer
from p4torch.errors import ArgumentError

#: Generators of a larger condition number have no inverse to speak of.
CONDITION = 1e8
#: Factors of a random element of a group: enough to leave the neighbourhood of each generator.
WORD = 6

Matrices = Tensor | Sequence[Tensor]


class Representation:
    """ρ: a group acting on n real features, by what generates the group:

        generators  ρ(g) `(g, n, n)`     of a finite group, or of the components of a Lie group
        algebra     dρ(X) `(k, n, n)`    of the Lie algebra: the group has the elements exp(Σ t_i dρ(X_i))

    Representations of one group name the same elements in the same order. Then

        ρ + σ       the direct sum, on n + m features         3 * ρ    three copies, one after the other
        ρ * σ       the tensor product, on n m features       ρ.trivial(5)    5 invariant features

    Args:
        generators: `(g, n, n)`, or a list of matrices; or none.
        algebra: `(k, n, n)`, or a list; or none.

    Raises:
        ArgumentError: for what is no list of square, real, finite matrices of one size, for singular generators, and
            where neither is given.
    """

    def __init__(self, generators: Matrices | None = None, algebra: Matrices | None = None) -> None:
        given = {"generators": generators, "algebra": algebra}
        stacks = {name: _stack(value, name) for name, value in given.items() if value is not None and len(value) > 0}
        if not stacks:
            raise ArgumentError.of("generators, algebra", "given, one of them at least", "none")
        sizes = {name: stack.shape[-1] for name, stack in stacks.items()}
        if len(set(sizes.values())) > 1:
            raise ArgumentError.of(
                "algebra", f"of matrices of size {sizes['generators']}, as generators", sizes["algebra"]
            )
        self.size = next(iter(sizes.values()))
        #: The precision in which the matrices were given.
        self.eps = max(_eps(stack) for stack in stacks.values())
        nothing = torch.zeros(0, self.size, self.size, dtype=torch.float64)
        self.generators = stacks.get("generators", nothing).double()
        self.algebra = stacks.get("algebra", nothing).double()
        singular = ~(torch.linalg.cond(self.generators) < CONDITION)
        if bool(singular.any()):
            got = f"a singular one, number {int(singular.nonzero()[0])}"
            raise ArgumentError.of("generators", "of nonsingular matrices", got)

    @property
    def signature(self) -> tuple[int, int]:
        """How many generators, and how many elements of the algebra: equal for representations of one group."""
        return len(self.generators), len(self.algebra)

    @property
    def matrices(self) -> Tensor:
        """All, generators first: `(g + k, n, n)`."""
        return torch.cat([self.generators, self.algebra])

    def trivial(self, count: int = 1) -> Representation:
        """The same group on so many features that it leaves alone: ρ(g) = I, dρ(X) = 0."""
        eye = torch.eye(check_integer("count", count, 1), dtype=torch.float64)
        generators, algebra = self.signature
        return Representation(eye.expand(generators, -1, -1), torch.zeros_like(eye).expand(algebra, -1, -1))

    def __add__(self, other: Representation) -> Representation:
        if not isinstance(other, Representation):
            return NotImplemented
        check_same_group([self, other])
        stacks = zip(self._stacks(), other._stacks(), strict=True)
        return _derived([_block_diagonal(*pair) for pair in stacks], self, other)

    def __mul__(self, other: Representation | int) -> Representation:
        if is_integer(other):
            return other * self
        if not isinstance(other, Representation):
            return NotImplemented
        check_same_group([self, other])
        generators = _kronecker(self.generators, other.generators)
        return _derived([generators, _kronecker_sum(self.algebra, other.algebra)], self, other)

    def __rmul__(self, count: int) -> Representation:
        if not is_integer(count):
            return NotImplemented
        eye = torch.eye(check_integer("count", count, 1), dtype=torch.float64)
        return _derived([_kronecker(eye.expand(len(stack), -1, -1), stack) for stack in self._stacks()], self)

    def _stacks(self) -> tuple[Tensor, Tensor]:
        return self.generators, self.algebra

    def __repr__(self) -> str:
        generators, algebra = self.signature
        return f"Representation(size={self.size}, generators={generators}, algebra={algebra})"


def same_elements(
    representations: Sequence[Representation], count: int, generator: torch.Generator | None = None
) -> list[Tensor]:
    """The same elements of the group in each representation, `(g + count, n, n)` in float64: all generators, and random
    products of generators and of exp(Σ t_i dρ(X_i)), t_i ~ N(0, 1)."""
    check_same_group(representations)
    generators, algebra = representations[0].signature
    words = torch.randint(generators + 1, (WORD, count), generator=generator)  # 0 is the identity
    times = torch.randn(WORD, count, algebra, generator=generator, dtype=torch.float64)
    return [_elements(each, words, times) for each in representations]


def check_same_group(representations: Sequence[Representation]) -> None:
    """Raise ArgumentError for representations that cannot be of one group."""
    signatures = [each.signature for each in representations]
    if len(set(signatures)) > 1:
        got = " and ".join(f"{generators} and {algebra}" for generators, algebra in signatures)
        expected = "of one group, with as many generators and elements of the algebra"
        raise ArgumentError.of("representations", expected, got)


def _elements(each: Representation, words: Tensor, times: Tensor) -> Tensor:
    eye = torch.eye(each.size, dtype=torch.float64)
    letters = torch.cat([eye.unsqueeze(0), each.generators])
    result = eye.expand(words.shape[1], -1, -1)
    for word, time in zip(words, times, strict=True):
        result = torch.linalg.matrix_exp(torch.einsum("ck,kij->cij", time, each.algebra)) @ letters[word] @ result
    return torch.cat([each.generators, result])


def _derived(stacks: Sequence[Tensor], *parents: Representation) -> Representation:
    """A representation made of others, no more precise than they are."""
    result = Representation(*stacks)
    result.eps = max(parent.eps for parent in parents)
    return result


# --- stacks of matrices -------------------------------------------------------------------------------------------


def _stack(value: Any, name: str) -> Tensor:
    """`(g, n, n)`, checked."""
    parts: list[Any] = list(value) if isinstance(value, (Tensor, list, tuple)) else [None]
    if not all(isinstance(part, Tensor) and part.dim() == 2 for part in parts):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError.of(name, "a tensor (g, n, n) or a list of matrices", got)
    size = parts[0].shape[-1]
    for part in parts:
        if part.shape != (size, size) or size == 0:
            raise ArgumentError.of(name, "of square matrices of one size", tuple(part.shape))
        if part.is_complex() or not bool(part.isfinite().all()):
            raise ArgumentError.of(name, "real and finite", part.dtype if part.is_complex() else "inf or nan")
    return torch.stack([part.detach().cpu() for part in parts])


def _eps(stack: Tensor) -> float:
    return torch.finfo(stack.dtype if stack.is_floating_point() else torch.float64).eps


def _block_diagonal(one: Tensor, other: Tensor) -> Tensor:
    """`(g, n, n)` and `(g, m, m)` -> `(g, n + m, n + m)`."""
    n, m = one.shape[-1], other.shape[-1]
    result = one.new_zeros(len(one), n + m, n + m)
    result[:, :n, :n], result[:, n:, n:] = one, other
    return result


def _kronecker(one: Tensor, other: Tensor) -> Tensor:
    """ρ(g) ⊗ σ(g)."""
    return torch.einsum("gij,gkl->gikjl", one, other).flatten(3, 4).flatten(1, 2)


def _kronecker_sum(one: Tensor, other: Tensor) -> Tensor:
    """dρ(X) ⊗ I + I ⊗ dσ(X)."""
    eyes = [torch.eye(part.shape[-1], dtype=part.dtype).expand_as(part) for part in (one, other)]
    return _kronecker(one, eyes[1]) + _kronecker(eyes[0], other)
