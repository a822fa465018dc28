"""Pairs of atoms: distances once, for every term that needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from p4torch.molecules.forces.geometry import dot, incidence, scatter


class Distances(NamedTuple):
    """Distances of all pairs, `(pairs, batch)`, in nm and its powers."""

    r: Tensor
    r2: Tensor
    inverse: Tensor
    inverse2: Tensor


class Pairs(nn.Module):
    """E = Σ E_term(r_12, r_13, ..., r_23, ...): terms of the distances of all pairs i < j, row by row of a triangle.

    Of a term, `energy(r)` is the energy `(...)` in kJ/mol for distances `(..., pairs)` in nm; `add(at, slope)` adds
    (dE/dr) / r to slope `(pairs, batch)` and returns the energy `(batch,)`.
    """

    atoms: Tensor
    matrix: Tensor

    def __init__(self, count: int, terms: Sequence[nn.Module]) -> None:
        super().__init__()
        atoms = torch.triu_indices(count, count, offset=1)
        self.register_buffer("atoms", atoms, persistent=False)
        self.register_buffer("matrix", incidence(count, atoms, (1.0, -1.0)), persistent=False)
        self.terms = nn.ModuleList(terms)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `(...)` in kJ/mol for x `(..., atoms, 3)` in nm."""
        first, second = self.atoms
        r = (x[..., first, :] - x[..., second, :]).square().sum(-1).sqrt()
        total = x.new_zeros(x.shape[:-2])
        for term in self.terms:
            total = total + term.energy(r)  # type: ignore[operator]
        return total

    def add(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dE/dx_i = Σ_j (dE/dr_ij) (x_i - x_j) / r_ij."""
        d = x.index_select(0, self.atoms[0]).sub_(x.index_select(0, self.atoms[1]))
        r2 = dot(d, d)
        r = r2.sqrt()
        inverse = r.reciprocal()
        at = Distances(r, r2, inverse, inverse.square())
        slope = torch.zeros_like(r)
        energy = x.new_zeros(x.shape[-1])
        for term in self.terms:
            energy += term.add(at, slope)  # type: ignore[operator]
        scatter(gradient, self.matrix, d.mul_(slope[:, None]))
        return energy
