"""One table of constructors: every general check runs on every row. A new property adds a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import p4torch as p4
from p4torch import linalg
from p4torch.properties._math import diagonals
from p4torch.representations import cyclic, rotations2d, so3, symmetric

Factory = Callable[[Tensor], p4.Perturbation]


@dataclass(frozen=True)
class Large:
    """What a long run starts from: an element of S of size 64.

    The factory is that of the row unless another is needed at this size; the sample, if there is none, a random tensor
    of this shape that the factory projects onto S.
    """

    shape: tuple[int, ...] = (64, 64)
    factory: Factory | None = None
    sample: Callable[[torch.Generator], Tensor] | None = None


@dataclass(frozen=True)
class Row:
    """A factory, from a base tensor to a perturbation, and options of `check_perturbation` for it. The rows that have a
    `large` one are trained for long, too: one of each class, at least."""

    factory: Factory
    options: dict[str, Any] = field(default_factory=dict)
    large: Large | None = None


def positive(generator: torch.Generator, shape: tuple[int, ...] = (6, 6), sweeps: int = 0) -> Tensor:
    """Entries exp(x), x ~ N(0, 1/4); with sweeps, columns and then rows are divided by their sums, so many times."""
    tensor = (0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).exp()
    for _ in range(sweeps):
        tensor = tensor / tensor.sum(-2, keepdim=True)
        tensor = tensor / tensor.sum(-1, keepdim=True)
    return tensor


def unitary(generator: torch.Generator, shape: tuple[int, ...] = (6, 6)) -> Tensor:
    """Orthonormal columns, or rows, complex."""
    tensor = torch.randn(shape, generator=generator, dtype=torch.complex128)
    return linalg.orthonormalized(tensor)


stochastic = partial(positive, sweeps=1)
doubly = partial(positive, sweeps=100)


def shifts(size: int, count: int) -> Tensor:
    """The cyclic group of so many elements, which exchange blocks of numbers: permutations `(count, size, size)`."""
    return torch.stack([torch.eye(size).roll(size // count * shift, 0) for shift in range(count)])


def turns(count: int) -> Tensor:
    """The same group: turns of a plane, beside another one that stays. `(count, 4, 4)`."""
    angles = 2 * torch.pi / count * torch.arange(count, dtype=torch.float64)
    skew = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    return torch.stack([torch.block_diag(torch.matrix_exp(angle * skew), torch.eye(2)) for angle in angles])


def toeplitz(generator: torch.Generator) -> Tensor:
    """One of size 64 with diagonals ~ N(0, 1/64)."""
    return diagonals.toeplitz(torch.randn(127, generator=generator, dtype=torch.float64) / 8, 64)


def circulant(generator: torch.Generator) -> Tensor:
    """One of size 64 with entries ~ N(0, 1/64)."""
    return diagonals.circulant(torch.randn(64, generator=generator, dtype=torch.float64) / 8)


#: Representations of SO(3) on 7 outputs and 8 inputs: vectors and invariants on both sides.
VECTORS = (2 * so3(1) + so3(0), so3(0) + so3(1) + so3(0) + so3(1))


def quick(**options: Any) -> dict[str, Any]:
    """Options of a row that repeats what another one of its kind shows at length."""
    return {"compile": False, "steps": 300, **options}


def special_unitary(generator: torch.Generator, shape: tuple[int, ...] = (3, 3)) -> Tensor:
    """Unitary, of determinant 1."""
    tensor = unitary(generator, shape)
    return tensor * torch.linalg.det(tensor)[..., None, None] ** (-1 / shape[-1])


#: The block shapes of properties that a group acts on: of all coordinates, and blocks of 4, which leave 2 of 6. Their
#: `tangent` is the dimension of the Lie algebra of the blocks, less what of it leaves A in place.
BLOCKS: dict[str, Row] = {
    "orthogonal-all": Row(p4.Orthogonal, quick(tangent=15)),
    "orthogonal-blocks": Row(
        partial(p4.Orthogonal, block=4), {"steps": 300}, Large(factory=partial(p4.Orthogonal, block=24))
    ),
    "orthogonal-blocks-both": Row(
        partial(p4.Orthogonal, block=4, side="both"), quick(tangent=11)
    ),  # both have one rotation in common
    "orthogonal-blocks-batched": Row(partial(p4.Orthogonal, block=2), quick(shape=(3, 5, 5), tangent=6, batch=False)),
    "stiefel-tall-blocks": Row(partial(p4.Orthogonal, block=4), quick(shape=(7, 3), tangent=6)),
    "stiefel-wide-blocks": Row(partial(p4.Orthogonal, block=3), quick(shape=(3, 7), tangent=6)),
    "invertible-all": Row(p4.Invertible, quick(tangent=36), Large()),
    "invertible-blocks": Row(
        partial(p4.Invertible, block=4), {"tangent": 16}, Large(factory=partial(p4.Invertible, block=24))
    ),
    "invertible-blocks-both": Row(partial(p4.Invertible, block=4, side="both"), quick(tangent=28)),
    "invertible-blocks-batched": Row(partial(p4.Invertible, block=2), quick(shape=(3, 5, 5), tangent=24, batch=False)),
    "invertible-exponential-all": Row(partial(p4.Invertible, form="exponential"), quick(tangent=36), Large()),
    "invertible-relative-all": Row(partial(p4.Invertible, form="relative"), quick(tangent=36)),
    "invertible-triangular-all": Row(partial(p4.Invertible, form="triangular"), quick(tangent=36), Large()),
    "invertible-triangular-blocks": Row(partial(p4.Invertible, form="triangular", block=4), quick(tangent=16)),
    "invertible-all-batched": Row(p4.Invertible, quick(shape=(3, 4, 4), tangent=48, batch=False)),
    "unit-determinant-all": Row(p4.UnitDeterminant, quick(tangent=35)),
    "unit-determinant-blocks": Row(
        partial(p4.UnitDeterminant, block=4),
        {"tangent": 15, "steps": 300},
        Large(factory=partial(p4.UnitDeterminant, block=24)),
    ),
    "unitary-all": Row(p4.Unitary, quick(sample=unitary, tangent=36)),
    "unitary-blocks": Row(
        partial(p4.Unitary, block=4),
        {"sample": unitary, "tangent": 16, "steps": 300},
        Large(factory=partial(p4.Unitary, block=24), sample=partial(unitary, shape=(64, 64))),
    ),
    "special-unitary": Row(p4.SpecialUnitary, quick(sample=special_unitary, tangent=8)),
    "special-unitary-stack": Row(
        p4.SpecialUnitary, quick(sample=partial(special_unitary, shape=(3, 3, 3)), tangent=24, batch=False)
    ),
    "special-unitary-blocks": Row(
        partial(p4.SpecialUnitary, block=2),
        {"sample": partial(special_unitary, shape=(5, 5)), "tangent": 6, "steps": 300},
        Large(factory=partial(p4.SpecialUnitary, block=24), sample=partial(special_unitary, shape=(64, 64))),
    ),
    "symplectic-all": Row(p4.Symplectic, quick(tangent=21)),
    "symplectic-blocks": Row(
        partial(p4.Symplectic, block=4),
        {"tangent": 10, "steps": 300},
        Large(factory=partial(p4.Symplectic, block=24)),
    ),
    "positive-definite-all": Row(p4.PositiveDefinite, quick(tangent=21)),
    "positive-definite-blocks": Row(
        partial(p4.PositiveDefinite, block=4),
        {"tangent": 10, "steps": 300},
        Large(factory=partial(p4.PositiveDefinite, block=24)),
    ),
    "fixed-spectrum-all": Row(p4.FixedSpectrum, quick(tangent=30)),
    "fixed-spectrum-blocks": Row(
        partial(p4.FixedSpectrum, block=4),
        {"tangent": 16, "steps": 300},
        Large(factory=partial(p4.FixedSpectrum, block=24)),
    ),
    "fixed-singular-values": Row(p4.FixedSingularValues, quick(tangent=30)),
    "fixed-singular-values-rectangular": Row(p4.FixedSingularValues, quick(shape=(4, 7), tangent=24)),
    "fixed-singular-values-blocks": Row(
        partial(p4.FixedSingularValues, block=4),
        {"tangent": 12, "steps": 300},
        Large(factory=partial(p4.FixedSingularValues, block=24)),
    ),
    "fixed-singular-values-rectangular-blocks": Row(
        partial(p4.FixedSingularValues, block=3), quick(shape=(4, 7), tangent=9)
    ),
}

PERTURBATIONS: dict[str, Row] = {
    "invertible": Row(partial(p4.Invertible, rank=1)),
    "invertible-2x2": Row(partial(p4.Invertible, rank=1), {"shape": (2, 2), "compile": False}),
    "invertible-rank3": Row(partial(p4.Invertible, rank=3), large=Large()),
    "invertible-batched": Row(partial(p4.Invertible, rank=1), {"shape": (3, 4, 4), "batch": False, "compile": False}),
    "invertible-exponential": Row(partial(p4.Invertible, rank=1, form="exponential"), large=Large()),
    "invertible-exponential-rank2": Row(partial(p4.Invertible, form="exponential", rank=2), {"compile": False}),
    "orthogonal": Row(partial(p4.Orthogonal, rank=1), {"tangent": 5}),  # k = 1: V dUᵀ - dU Vᵀ vanishes for dU along V
    "orthogonal-rank2": Row(partial(p4.Orthogonal, rank=2), large=Large()),
    "orthogonal-batched": Row(
        partial(p4.Orthogonal, rank=2), {"shape": (3, 4, 4), "batch": False, "compile": False, "steps": 300}
    ),
    "stiefel-tall": Row(partial(p4.Orthogonal, rank=2), {"shape": (7, 3), "compile": False}),
    "stiefel-wide": Row(partial(p4.Orthogonal, rank=1), {"shape": (3, 7), "tangent": 6, "compile": False}),
    "unit-determinant": Row(partial(p4.UnitDeterminant, rank=1), {"tangent": 5}, large=Large()),  # k(n - k)
    "unit-determinant-rank2": Row(partial(p4.UnitDeterminant, rank=2), {"compile": False}),
    "unit-determinant-2x2": Row(
        partial(p4.UnitDeterminant, rank=1), {"shape": (2, 2), "tangent": 1, "compile": False, "steps": 300}
    ),
    "low-rank-update": Row(p4.LowRankUpdate, {"shape": (4, 7), "tangent": 4, "steps": 300}, large=Large()),
    "low-rank-update-rank2": Row(partial(p4.LowRankUpdate, rank=2), {"compile": False, "steps": 300}),
    "spectral-bound": Row(p4.SpectralBound, large=Large()),  # bound: the base's own norm, so that steps are scaled
    "spectral-bound-rank2": Row(partial(p4.SpectralBound, bound=1.0, rank=2), {"shape": (7, 4), "steps": 300}),
    "spectral-bound-slack": Row(
        partial(p4.SpectralBound, bound=100.0, rank=2), {"shape": (4, 7), "compile": False, "steps": 300}
    ),
    "spectral-bound-merge": Row(partial(p4.SpectralBound, rank=1, at="merge"), large=Large()),  # merges clip
    "spectral-bound-merge-scale": Row(
        partial(p4.SpectralBound, bound=1.0, rank=2, at="merge", method="scale"),
        {"shape": (7, 4), "compile": False, "steps": 300},
    ),
    "convolution-bound": Row(
        p4.ConvolutionBound,  # bound: the kernel's own norm, so that steps are scaled
        {"shape": (4, 3, 3, 2), "batch": False, "tangent": 72, "steps": 300},
        Large((16, 8, 3, 2)),
    ),
    "convolution-bound-merge": Row(
        partial(p4.ConvolutionBound, at="merge", stride=(1, 2), groups=2, size=(8, 6), padding=1),
        {"shape": (4, 3, 2, 3), "batch": False, "tangent": 72, "compile": False, "steps": 300},
    ),
    "fixed-rank": Row(partial(p4.FixedRank, rank=2), {"shape": (7, 5), "tangent": 20}, Large()),  # r(n + m - r)
    "fixed-rank-dense": Row(partial(p4.FixedRank, rank=3), {"tangent": 27, "compile": False, "steps": 300}),
    "nonnegative": Row(
        p4.Nonnegative,
        {"sample": partial(positive, shape=(4, 6)), "tangent": 24},
        Large(sample=partial(positive, shape=(64, 64))),
    ),
    "nonnegative-vector": Row(
        p4.Nonnegative,
        {"sample": partial(positive, shape=(5,)), "tangent": 5, "batch": False, "compile": False, "steps": 300},
    ),
    "stochastic": Row(p4.Stochastic, {"sample": stochastic}, Large(sample=partial(stochastic, shape=(64, 64)))),
    "stochastic-rank2": Row(
        partial(p4.Stochastic, rank=2),
        {"sample": partial(stochastic, shape=(7, 4)), "tangent": 14, "compile": False, "steps": 300},
    ),
    "stochastic-doubly": Row(
        partial(p4.Stochastic, doubly=True),
        {"sample": doubly, "tangent": 10, "steps": 300},  # k(n - 1), k = 2
        Large(sample=partial(doubly, shape=(64, 64))),
    ),
    "positive-definite": Row(partial(p4.PositiveDefinite, rank=1), large=Large()),
    "positive-definite-rank2": Row(partial(p4.PositiveDefinite, rank=2), {"compile": False}),
    "positive-definite-batched": Row(
        partial(p4.PositiveDefinite, rank=1), {"shape": (3, 4, 4), "batch": False, "compile": False, "steps": 300}
    ),
    "symplectic": Row(partial(p4.Symplectic, rank=1)),
    "symplectic-rank2": Row(partial(p4.Symplectic, rank=2), {"compile": False, "steps": 300}, large=Large()),
    "symplectic-2x2": Row(partial(p4.Symplectic, rank=1), {"shape": (2, 2), "compile": False, "steps": 300}),
    "unitary": Row(partial(p4.Unitary, rank=1), {"sample": unitary, "tangent": 11}),  # of 2n - 1
    "unitary-rank2": Row(
        partial(p4.Unitary, rank=2),
        {"sample": unitary, "tangent": 20, "compile": False, "steps": 300},
        large=Large(sample=partial(unitary, shape=(64, 64))),
    ),
    "unitary-tall": Row(
        partial(p4.Unitary, rank=2), {"sample": partial(unitary, shape=(7, 3)), "compile": False, "steps": 300}
    ),
    "unitary-wide": Row(
        partial(p4.Unitary, rank=1), {"sample": partial(unitary, shape=(3, 7)), "compile": False, "steps": 300}
    ),
    "symmetric": Row(partial(p4.LinearSubspace, kind="symmetric"), large=Large()),
    "symmetric-rank2": Row(partial(p4.LinearSubspace, kind="symmetric", rank=2), {"compile": False, "steps": 300}),
    "skew": Row(partial(p4.LinearSubspace, kind="skew"), {"tangent": 5}, Large()),  # v vᵀ is not skew
    "skew-rank2": Row(partial(p4.LinearSubspace, kind="skew", rank=2), {"compile": False, "steps": 300}),
    "circulant": Row(partial(p4.LinearSubspace, kind="circulant"), large=Large(sample=circulant)),
    "circulant-odd": Row(partial(p4.LinearSubspace, kind="circulant"), {"shape": (5, 5), "compile": False}),
    "toeplitz": Row(partial(p4.LinearSubspace, kind="toeplitz"), {"tangent": 11}, Large(sample=toeplitz)),
    "toeplitz-wide": Row(
        partial(p4.LinearSubspace, kind="toeplitz"), {"shape": (3, 5), "tangent": 7, "compile": False, "steps": 300}
    ),
    "lower": Row(partial(p4.LinearSubspace, kind="lower"), large=Large()),
    "upper": Row(partial(p4.LinearSubspace, kind="upper", rank=2), {"compile": False, "steps": 300}),
    "masked": Row(
        partial(p4.LinearSubspace, mask=torch.ones(4, 7, dtype=torch.bool).triu(1)),
        {"shape": (4, 7), "tangent": 4, "steps": 300},
        Large(factory=partial(p4.LinearSubspace, mask=torch.ones(64, 64, dtype=torch.bool).triu(-20))),
    ),
    "equivariant": Row(
        partial(p4.LinearSubspace, group=shifts(6, 3)),
        large=Large(factory=partial(p4.LinearSubspace, group=shifts(64, 4))),
    ),
    "equivariant-pair": Row(
        partial(p4.LinearSubspace, group=(turns(3), shifts(6, 3))),
        {"shape": (4, 6), "tangent": 4, "compile": False, "steps": 300},
    ),
    "intertwining": Row(
        partial(p4.LinearSubspace, representation=VECTORS),
        {"shape": (7, 8), "tangent": 6, "steps": 300},
        Large((64, 64), partial(p4.LinearSubspace, representation=16 * so3(1) + 16 * so3(0))),
    ),
    "intertwining-turns": Row(partial(p4.LinearSubspace, algebra=rotations2d((1, 1, 2)).algebra), quick(tangent=10)),
    "intertwining-permutations": Row(
        partial(p4.LinearSubspace, generators=(symmetric(3) * symmetric(3)).generators),
        quick(shape=(9, 9), tangent=14),
        Large((64, 64), partial(p4.LinearSubspace, generators=cyclic(64).generators), circulant),
    ),
    "fixed-spectrum": Row(partial(p4.FixedSpectrum, rank=1)),
    "fixed-spectrum-rank2": Row(partial(p4.FixedSpectrum, rank=2), {"compile": False, "steps": 300}, large=Large()),
} | BLOCKS
