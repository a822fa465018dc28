"""The rows of a z-matrix, measured all at once and placed level by level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p4torch.molecules.geometry import degenerate, log_volume, place, see
from p4torch.molecules.zmatrix import ZMatrix


class Rows(nn.Module):
    """Atoms `(3, atoms, batch)` as bonds, angles, torsions `(rows, batch)`, and back.

    The volume element is Π r² sin θ dr dθ dφ over all rows: an atom's place depends on atoms placed before only.
    """

    partners: Tensor
    places: Tensor
    back: Tensor

    def __init__(self, zmatrix: ZMatrix) -> None:
        super().__init__()
        order = torch.tensor(zmatrix.order)
        rows = torch.tensor(zmatrix.rows, dtype=torch.long).reshape(-1, 4)
        back = order.argsort()
        self.counts = [len(level) for level in zmatrix.levels]
        self.register_buffer("partners", rows.T.contiguous(), persistent=False)
        self.register_buffer("places", back[rows.T], persistent=False)
        self.register_buffer("back", back, persistent=False)

    def measure(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(bonds, angles, torsions, Σ log(r² sin θ))."""
        d, c, b, a = (x.index_select(1, atoms) for atoms in self.partners)
        seen = see(a, b, c, d, dim=0)
        return seen.bond, seen.angle, seen.torsion, seen.log_volume.sum(0)

    def place(self, start: Tensor, bonds: Tensor, angles: Tensor, torsions: Tensor) -> tuple[Tensor, Tensor]:
        """(atoms in the molecule's order, Σ log(r² |sin θ|)), beginning with the block `(3, m, batch)`."""
        placed = start
        levels = zip(
            *(values.split(self.counts) for values in (bonds, angles, torsions)),
            self.places.split(self.counts, dim=1),
            strict=True,
        )
        for r, theta, phi, places in levels:
            c, b, a = (placed.index_select(1, atoms) for atoms in places[1:])
            placed = torch.cat([placed, place(a, b, c, r, theta, phi, dim=0)], 1)
        return placed.index_select(1, self.back), log_volume(bonds, angles).sum(0)

    def degenerate(self, x: Tensor) -> Tensor:
        """Whether any row's bond, angle or torsion is undefined, `(batch)`."""
        d, c, b, a = (x.index_select(1, atoms) for atoms in self.partners)
        return degenerate(a, b, c, d, dim=0).any(0)
