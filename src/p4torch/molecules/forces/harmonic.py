"""Harmonic bonds and angles."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from p4torch.molecules.forces.geometry import SMALLEST_SQUARE, cross, dot, incidence, scatter


class Harmonic(nn.Module):
    """E = Σ k (q - q0)² / 2 of a length or an angle q.

    atoms: `(2, bonds)` or `(3, angles)`. origin: q0 `(terms,)` in nm or rad. stiffness: k in kJ/mol/nm² or kJ/mol/rad².
    """

    atoms: Tensor
    origin: Tensor
    stiffness: Tensor
    matrix: Tensor

    def __init__(self, atoms: Tensor, origin: Tensor, stiffness: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("atoms", atoms, persistent=False)
        self.register_buffer("origin", origin[:, None], persistent=False)
        self.register_buffer("stiffness", stiffness[:, None], persistent=False)
        self.register_buffer("matrix", matrix, persistent=False)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `(...)` in kJ/mol for x `(..., atoms, 3)` in nm."""
        origin, stiffness = self.origin[:, 0].to(x.dtype), self.stiffness[:, 0].to(x.dtype)
        return (0.5 * stiffness * (self.measured(x) - origin).square()).sum(-1)

    def measured(self, x: Tensor) -> Tensor:
        """q `(..., terms)`."""
        raise NotImplementedError


class HarmonicBonds(Harmonic):
    """The length q = r = |x_j - x_i|; atoms: i, j."""

    def __init__(self, count: int, atoms: Tensor, length: Tensor, stiffness: Tensor) -> None:
        super().__init__(atoms, length, stiffness, incidence(count, atoms, (-1.0, 1.0)))

    def measured(self, x: Tensor) -> Tensor:
        first, second = self.atoms
        return (x[..., second, :] - x[..., first, :]).square().sum(-1).clamp_min(SMALLEST_SQUARE).sqrt()

    def add(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dE/dx_j = k (r - r0) (x_j - x_i) / r."""
        d = x.index_select(0, self.atoms[1]).sub_(x.index_select(0, self.atoms[0]))
        r = dot(d, d).clamp_min_(SMALLEST_SQUARE).sqrt_()
        stretch = r - self.origin
        pull = self.stiffness * stretch
        scatter(gradient, self.matrix, d.mul_((pull / r)[:, None]))
        return (pull * stretch).sum(0).mul_(0.5)


class HarmonicAngles(Harmonic):
    """The angle q = θ = atan2(|u × v|, u · v), u = x_i - x_j, v = x_k - x_j: well-conditioned; atoms: i, j, k.

    At θ = 0 and θ = π, where θ has no derivative, the gradient is 0; θ = π/2 where atoms coincide, with gradient 0.
    """

    def __init__(self, count: int, atoms: Tensor, angle: Tensor, stiffness: Tensor) -> None:
        i, j, k = atoms
        ends = torch.stack([torch.cat([i, k]), torch.cat([j, j])])
        super().__init__(atoms, angle, stiffness, incidence(count, ends, (1.0, -1.0)))

    def measured(self, x: Tensor) -> Tensor:
        i, j, k = self.atoms
        u, v = x[..., i, :] - x[..., j, :], x[..., k, :] - x[..., j, :]
        sine2, cosine = torch.linalg.cross(u, v).square().sum(-1), (u * v).sum(-1)
        coinciding = (sine2 == 0) & (cosine == 0)
        sine = sine2.clamp_min(SMALLEST_SQUARE).sqrt()
        return torch.where(coinciding, math.pi / 2, torch.atan2(sine, torch.where(coinciding, 1.0, cosine)))

    def add(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dθ/du = u × p / (|u|² |p|), dθ/dv = -v × p / (|v|² |p|), p = u × v."""
        i, j, k = self.atoms
        centre = x.index_select(0, j)
        u, v = x.index_select(0, i).sub_(centre), x.index_select(0, k).sub_(centre)
        p = cross(u, v)
        sine = dot(p, p).clamp_min_(SMALLEST_SQUARE).sqrt_()
        bend = torch.atan2(sine, dot(u, v)).sub_(self.origin)
        torque = self.stiffness * bend
        slope = torque / sine
        lengths2 = torch.cat([dot(u, u), dot(v, v)]).clamp_min_(SMALLEST_SQUARE)
        rows = torch.cat([cross(u, p), cross(p, v)])
        rows *= (torch.cat([slope, slope]) / lengths2)[:, None]
        scatter(gradient, self.matrix, rows)
        return (torque * bend).sum(0).mul_(0.5)
