"""Harmonic bonds."""

from __future__ import annotations

from torch import Tensor, nn

from p4torch.molecules.forces.geometry import SMALLEST_SQUARE, dot, incidence, scatter


class HarmonicBonds(nn.Module):
    """E = Σ k (r - r0)² / 2.

    atoms: `(2, bonds)`. length: r0 `(bonds,)` in nm. stiffness: k `(bonds,)` in kJ/mol/nm².
    """

    atoms: Tensor
    length: Tensor
    stiffness: Tensor
    matrix: Tensor

    def __init__(self, count: int, atoms: Tensor, length: Tensor, stiffness: Tensor) -> None:
        super().__init__()
        self.register_buffer("atoms", atoms, persistent=False)
        self.register_buffer("length", length[:, None], persistent=False)
        self.register_buffer("stiffness", stiffness[:, None], persistent=False)
        self.register_buffer("matrix", incidence(count, atoms, (-1.0, 1.0)), persistent=False)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `(...)` in kJ/mol for x `(..., atoms, 3)` in nm."""
        first, second = self.atoms
        r = (x[..., second, :] - x[..., first, :]).square().sum(-1).clamp_min(SMALLEST_SQUARE).sqrt()
        length, stiffness = self.length[:, 0].to(x.dtype), self.stiffness[:, 0].to(x.dtype)
        return (0.5 * stiffness * (r - length).square()).sum(-1)

    def add(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dE/dx_j = k (r - r0) (x_j - x_i) / r."""
        d = x.index_select(0, self.atoms[1]).sub_(x.index_select(0, self.atoms[0]))
        r = dot(d, d).clamp_min_(SMALLEST_SQUARE).sqrt_()
        stretch = r - self.length
        pull = self.stiffness * stretch
        scatter(gradient, self.matrix, d.mul_((pull / r)[:, None]))
        return (pull * stretch).sum(0).mul_(0.5)
