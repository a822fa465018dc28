"""The matrices A with ρ_out A = A ρ_in, for given pairs of matrices: an orthonormal basis, as coordinates of them.

Features that no matrix of a representation mixes belong to different parts of it. Parts that are equal, entry by entry,
are copies of one type: between m' copies of one and m copies of another, A is a matrix `(m', m)` of intertwiners of the
two types, of which each pair of types has one small basis.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from p4torch.properties._math.double_parameter import DoubleParameter
from p4torch.properties._math.groups import permutations_of


class Intertwiners(nn.Module):
    """An orthonormal basis E_1, ..., E_d of {A `(n, m)` : L_g A = A R_g for all g}: `forward` maps coordinates
    `(..., d)` to Σ a_i E_i `(..., n, m)`, `coordinates` a matrix to those of the nearest one.

    Args:
        left, right: L `(g, n, n)` and R `(g, m, m)` in float64.
        eps: the precision of their entries; singular values below √eps times the largest one count as 0.
    """

    rows_order: Tensor
    rows_places: Tensor
    columns_order: Tensor
    columns_places: Tensor

    def __init__(self, left: Tensor, right: Tensor, eps: float) -> None:
        super().__init__()
        rows, columns = copies(left, eps**0.5), copies(right, eps**0.5)
        for name, types in (("rows", rows), ("columns", columns)):
            order = torch.cat([places.flatten() for places in types])
            self.register_buffer(f"{name}_order", order)
            self.register_buffer(f"{name}_places", order.argsort())
        pairs = [
            _pair(left[:, one[0][:, None], one[0]], right[:, other[0][:, None], other[0]], len(one), len(other), eps)
            for one in rows
            for other in columns
        ]
        self.pairs = nn.ModuleList(pairs)
        self.grid = len(rows), len(columns)
        self.sizes = [places.numel() for places in rows], [places.numel() for places in columns]
        self.dimensions = [pair.dimension for pair in pairs]

    def __repr__(self) -> str:
        return f"Intertwiners(dimension={self.dimension})"

    @property
    def dimension(self) -> int:
        """d."""
        return sum(self.dimensions)

    def forward(self, a: Tensor) -> Tensor:
        parts = a.split(self.dimensions, -1)
        blocks = [pair(part) for pair, part in zip(self.pairs, parts, strict=True)]
        width = self.grid[1]
        lines = [torch.cat(blocks[start : start + width], -1) for start in range(0, len(blocks), width)]
        return torch.cat(lines, -2).index_select(-2, self.rows_places).index_select(-1, self.columns_places)

    def coordinates(self, matrix: Tensor) -> Tensor:
        """<E_i, A> `(..., d)` in float64."""
        exact = matrix.double().index_select(-2, self.rows_order).index_select(-1, self.columns_order)
        blocks = [block for line in exact.split(self.sizes[0], -2) for block in line.split(self.sizes[1], -1)]
        return torch.cat(
            [cast(_Pair, pair).coordinates(block) for pair, block in zip(self.pairs, blocks, strict=True)], -1
        )

    def project(self, matrix: Tensor) -> Tensor:
        """The nearest intertwiner, in float64."""
        return self.forward(self.coordinates(matrix))


class _Pair(nn.Module):
    """Between `(m', m)` copies of two types, whose intertwiners `(i, j)` have a basis of e: coordinates
    `(..., m' m e)`."""

    def __init__(self, copies: tuple[int, int], shape: tuple[int, int], each: int) -> None:
        super().__init__()
        self.copies, self.shape, self.each = copies, shape, each
        self.dimension = copies[0] * copies[1] * each

    def forward(self, a: Tensor) -> Tensor:
        blocks = self.combined(a.unflatten(-1, (*self.copies, self.each))).unflatten(-1, self.shape)
        return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2)

    def coordinates(self, matrix: Tensor) -> Tensor:
        (m, n), (i, j) = self.copies, self.shape
        blocks = matrix.unflatten(-1, (n, j)).unflatten(-3, (m, i)).transpose(-3, -2)
        return self.products(blocks.flatten(-2)).flatten(-3)

    def combined(self, a: Tensor) -> Tensor:
        """`(..., e)` -> `(..., i j)`."""
        raise NotImplementedError

    def products(self, blocks: Tensor) -> Tensor:
        """`(..., i j)` -> `(..., e)`, in float64."""
        raise NotImplementedError


class _Dense(_Pair):
    """A basis as matrices `(e, i j)`."""

    def __init__(self, copies: tuple[int, int], shape: tuple[int, int], basis: Tensor) -> None:
        super().__init__(copies, shape, len(basis))
        self.basis = DoubleParameter(basis)

    def combined(self, a: Tensor) -> Tensor:
        return a @ self.basis.value.to(a.dtype)

    def products(self, blocks: Tensor) -> Tensor:
        return blocks @ self.basis.value.mT


class _Orbits(_Pair):
    """Of permutations: E_i is constant on the i-th orbit of pairs of features, 1/√size there, and 0 elsewhere."""

    labels: Tensor

    def __init__(self, copies: tuple[int, int], labels: Tensor) -> None:
        counts = labels.flatten().bincount()
        super().__init__(copies, (labels.shape[0], labels.shape[1]), len(counts))
        self.register_buffer("labels", labels.flatten())
        self.scale = DoubleParameter(counts.double().rsqrt())

    def combined(self, a: Tensor) -> Tensor:
        return (a * self.scale.value.to(a.dtype)).index_select(-1, self.labels)

    def products(self, blocks: Tensor) -> Tensor:
        sums = blocks.new_zeros(*blocks.shape[:-1], self.each).index_add(-1, self.labels, blocks)
        return sums * self.scale.value


def _pair(left: Tensor, right: Tensor, m: int, n: int, eps: float) -> _Pair:
    sigma, tau = permutations_of(left), permutations_of(right)
    if sigma is not None and tau is not None and _bijective(sigma) and _bijective(tau):
        return _Orbits((m, n), orbits(sigma, tau))
    return _Dense((m, n), (left.shape[-1], right.shape[-1]), null_space(left, right, eps))


def _bijective(orders: Tensor) -> bool:
    """Matrices of an algebra may have one 1 in each row, too."""
    return torch.equal(orders.sort(-1)[0], torch.arange(orders.shape[-1]).expand_as(orders))


def copies(matrices: Tensor, tolerance: float) -> list[Tensor]:
    """The types of parts of matrices `(g, n, n)`: for each the features of its copies, `(copies, size)`."""
    types: list[tuple[Tensor, list[Tensor]]] = []
    labels = _parts(matrices.abs().amax(0) > tolerance * matrices.abs().max())
    for label in labels.unique().tolist():
        part = (labels == label).nonzero().flatten()
        block = matrices[:, part[:, None], part]
        for other, places in types:
            if other.shape == block.shape and bool((other - block).abs().max() <= tolerance * other.abs().max()):
                places.append(part)
                break
        else:
            types.append((block, [part]))
    return [torch.stack(places) for _, places in types]


def orbits(sigma: Tensor, tau: Tensor) -> Tensor:
    """Numbers `(n, m)` of the orbits of pairs (i, j) under (σ_g(i), τ_g(j)), σ `(g, n)` and τ `(g, m)`."""
    n, m = sigma.shape[-1], tau.shape[-1]
    moved = (sigma[:, :, None] * m + tau[:, None, :]).flatten(1)
    moves = torch.cat([moved, moved.argsort(-1)])  # and back
    labels = torch.arange(n * m)
    while True:
        new = torch.minimum(labels, labels[moves].amin(0))
        new = new[new]
        if torch.equal(new, labels):
            return labels.unique(return_inverse=True)[1].reshape(n, m)
        labels = new


def null_space(left: Tensor, right: Tensor, eps: float) -> Tensor:
    """An orthonormal basis `(d, n m)` of the A with L_g A = A R_g for all g, by an SVD: O(g (n m)³)."""
    n, m = left.shape[-1], right.shape[-1]
    eye_n, eye_m = torch.eye(n, dtype=left.dtype), torch.eye(m, dtype=left.dtype)
    rows = [
        torch.kron(one, eye_m) - torch.kron(eye_n, other.mT.contiguous())
        for one, other in zip(left, right, strict=True)
    ]
    _, values, basis = torch.linalg.svd(torch.cat(rows), full_matrices=False)
    size = max(float(values[0]), float(left.abs().max()), float(right.abs().max()))
    return basis[values <= eps**0.5 * size]


def _parts(mixed: Tensor) -> Tensor:
    """For each feature the first one that it is mixed with, however indirectly, `(n,)`; `mixed` `(n, n)` says which are
    directly."""
    mixed = mixed | mixed.mT | torch.eye(len(mixed), dtype=torch.bool)
    labels = torch.arange(len(mixed))
    while True:
        new = torch.where(mixed, labels, len(labels)).amin(-1)
        new = new[new]
        if torch.equal(new, labels):
            return labels
        labels = new
