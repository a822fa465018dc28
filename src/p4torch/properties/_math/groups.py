"""Finite groups given by their matrices: what makes a list of matrices a group, and the mean over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from p4torch.errors import ArgumentError

#: A list of matrices of a group, or a pair of such lists: representations of outputs and of inputs.
Group = Tensor | Sequence[Tensor] | tuple[Tensor | Sequence[Tensor], Tensor | Sequence[Tensor]]

#: Matrices of a larger condition number have no inverse to speak of.
CONDITION = 1e8


def representations(group: Group, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """ρ_out(g) `(g, n, n)` and ρ_in(g)⁻ᵀ `(g, m, m)` in float64, each pair once. Raises ArgumentError for what is no
    group, and says why."""
    pair = is_pair(group)
    parts = [*group] if pair else [group, group]
    names = ("group[0]", "group[1]") if pair else ("group", "group")
    if not pair and outputs != inputs:
        raise ArgumentError.of(
            "group", f"a pair of representations of {outputs} outputs and {inputs} inputs", "a single one"
        )
    left, left_eps = _matrices(parts[0], names[0], outputs)
    right, right_eps = _matrices(parts[1], names[1], inputs)
    if len(left) != len(right):
        raise ArgumentError.of("group", "two representations of as many elements", f"{len(left)} and {len(right)}")
    kept, inverses = _check_group(left, right, max(left_eps, right_eps) ** 0.5)
    return left[kept], right[inverses].mT


def is_pair(group: Any) -> bool:
    """Whether it is two lists of matrices, and not one."""
    return isinstance(group, (tuple, list)) and len(group) == 2 and _dimensions(group[0]) == 3


def reynolds(tensor: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The mean of ρ_out(g) A ρ_in(g)⁻¹ over g, `(..., n, m)` in float64; `right` is ρ_in(g)⁻ᵀ."""
    exact, total = tensor.double(), torch.zeros_like(tensor, dtype=torch.float64)
    for one, other in zip(left, right, strict=True):
        total += one @ exact @ other.mT
    return total / len(left)


def permutations_of(matrices: Tensor) -> Tensor | None:
    """σ `(g, n)` with (ρ(g) x)_i = x_σ(g, i), if all are permutation matrices."""
    order = matrices.argmax(-1)
    permutations = torch.zeros_like(matrices).scatter_(-1, order.unsqueeze(-1), 1.0)
    return order if torch.equal(permutations, matrices) else None


def images(matrices: Tensor, order: Tensor | None, factor: Tensor) -> Tensor:
    """[ρ(g) F]_g, `(g, n, n)` and `(..., n, k)` -> `(..., n, gk)`: copies of rows, if there is an order, or one product
    with all matrices."""
    if order is None:
        moved = (matrices.flatten(0, 1).to(factor.dtype) @ factor).unflatten(-2, matrices.shape[:2])
    else:
        moved = factor[..., order, :]
    return moved.movedim(-3, -2).flatten(-2)


def tangent_dimension(left: Tensor, right: Tensor, rank: int) -> int:
    """In how many directions U `(n, k)` moves the mean of ρ_out(g) U Vᵀ ρ_in(g)⁻¹ for random V: the rank of the map
    from U to the product of the mean with random factors W `(m, k)`, which loses none."""
    generator = torch.Generator().manual_seed(0)
    v, w = torch.randn(2, right.shape[-1], rank, generator=generator, dtype=torch.float64).to(left)
    inner = torch.einsum("mk,gam,aj->gkj", v, right, w)
    size = left.shape[-1] * rank
    operator = torch.einsum("gkj,gni->njik", inner, left).reshape(size, size) / len(left)
    return int(torch.linalg.matrix_rank(operator))


def commutant_dimension(left: Tensor, right: Tensor) -> int:
    """Of the space of all A with ρ_out(g) A = A ρ_in(g): the mean of tr ρ_out(g) · tr ρ_in(g)⁻¹."""
    traces = [matrices.diagonal(dim1=-2, dim2=-1).sum(-1) for matrices in (left, right)]
    return round(float((traces[0] * traces[1]).mean()))


# --- checks -------------------------------------------------------------------------------------------------------


def _dimensions(part: Any) -> int:
    """Of a tensor, or of a list of tensors as one; 0 for anything else."""
    if isinstance(part, Tensor):
        return part.dim()
    if isinstance(part, (tuple, list)) and part and all(isinstance(value, Tensor) for value in part):
        return 1 + part[0].dim()
    return 0


def _matrices(part: Any, name: str, size: int) -> tuple[Tensor, float]:
    """`(g, size, size)` in float64, and the precision it came in."""
    if _dimensions(part) != 3:
        got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
        raise ArgumentError.of(name, "a tensor (g, n, n) or a list of matrices", got)
    for value in part:
        if value.shape != (size, size):
            raise ArgumentError.of(name, f"of matrices ({size}, {size}), to fit the base", tuple(value.shape))
        if value.is_complex() or not bool(value.isfinite().all()):
            raise ArgumentError.of(name, "real and finite", value.dtype if value.is_complex() else "inf or nan")
    dtype = part[0].dtype
    eps = torch.finfo(dtype if dtype.is_floating_point else torch.float64).eps
    return torch.stack([value.detach().double() for value in part]), eps


def _check_group(left: Tensor, right: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Indices of the distinct pairs and of their inverses, or an ArgumentError. Elements are told apart by what they
    make of a random vector of outputs and one of inputs: O(g²) products with vectors, none of matrices."""
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(part.shape[-1], generator=generator, dtype=torch.float64).to(part) for part in (left, right)]
    images = torch.cat([part @ vector for part, vector in zip((left, right), vectors, strict=True)], -1)
    unit, scale = torch.cat(vectors), tolerance * images.abs().max()
    same = torch.cdist(images, images, p=torch.inf) <= scale
    kept = (~same.tril(-1).any(-1)).nonzero().flatten()
    images = images[kept]
    if not bool(((images - unit).abs().amax(-1) <= scale).any()):
        raise _no_group(left, right, "a group", f"{len(left)} matrices without the identity")
    inverses = []
    for number in kept.tolist():
        first, second = images.split([left.shape[-1], right.shape[-1]], -1)
        products = torch.cat([first @ left[number].mT, second @ right[number].mT], -1)
        growth = torch.stack([part[number].abs().sum(-1).max() for part in (left, right)]).max().clamp_min(1)
        apart = torch.cdist(products, images, p=torch.inf).amin(-1) > scale * growth
        if bool(apart.any()):
            other = int(kept[int(apart.nonzero()[0])])
            got = f"numbers {number} and {other}, whose product is not among them"
            raise _no_group(left, right, "closed under products", got)
        back = ((products - unit).abs().amax(-1) <= scale * growth).nonzero().flatten()
        if len(back) == 0:
            raise _no_group(left, right, "a group", f"number {number} without its inverse")
        inverses.append(int(kept[back[0]]))
    return kept, torch.tensor(inverses, device=left.device)


def _no_group(left: Tensor, right: Tensor, expected: str, got: str) -> ArgumentError:
    """What is wrong; a singular matrix comes first, as the reason of the rest."""
    singular = ~((torch.linalg.cond(left) < CONDITION) & (torch.linalg.cond(right) < CONDITION))
    if bool(singular.any()):
        return ArgumentError.of(
            "group", "of nonsingular matrices", f"a singular one, number {int(singular.nonzero()[0])}"
        )
    return ArgumentError.of("group", expected, got)
