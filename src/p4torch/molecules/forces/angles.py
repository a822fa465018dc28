"""Harmonic angles."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from p4torch.molecules.forces.geometry import SMALLEST_SQUARE, cross, dot, incidence, scatter


class HarmonicAngles(nn.Module):
    """E = Σ k (θ - θ0)² / 2 with θ = atan2(|u × v|, u · v), u = x_i - x_j, v = x_k - x_j: well-conditioned.

    atoms: i, j, k as `(3, angles)`, j in the middle. angle: θ0 `(angles,)` in rad. stiffness: k in kJ/mol/rad².
    At θ = 0 and θ = π, where θ has no derivative, the gradient is 0; θ = π/2 where atoms coincide, with gradient 0.
    """

    atoms: Tensor
    angle: Tensor
    stiffness: Tensor
    matrix: Tensor

    def __init__(self, count: int, atoms: Tensor, angle: Tensor, stiffness: Tensor) -> None:
        super().__init__()
        self.register_buffer("atoms", atoms, persistent=False)
        self.register_buffer("angle", angle[:, None], persistent=False)
        self.register_buffer("stiffness", stiffness[:, None], persistent=False)
        ends = torch.cat([atoms[0], atoms[2]]), torch.cat([atoms[1], atoms[1]])
        self.register_buffer("matrix", incidence(count, torch.stack(ends), (1.0, -1.0)), persistent=False)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `(...)` in kJ/mol for x `(..., atoms, 3)` in nm."""
        i, j, k = self.atoms
        u, v = x[..., i, :] - x[..., j, :], x[..., k, :] - x[..., j, :]
        sine2, cosine = torch.linalg.cross(u, v).square().sum(-1), (u * v).sum(-1)
        coinciding = (sine2 == 0) & (cosine == 0)
        sine = sine2.clamp_min(SMALLEST_SQUARE).sqrt()
        theta = torch.where(coinciding, math.pi / 2, torch.atan2(sine, torch.where(coinciding, 1.0, cosine)))
        angle, stiffness = self.angle[:, 0].to(x.dtype), self.stiffness[:, 0].to(x.dtype)
        return (0.5 * stiffness * (theta - angle).square()).sum(-1)

    def add(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dθ/du = u × p / (|u|² |p|), dθ/dv = -v × p / (|v|² |p|), p = u × v."""
        i, j, k = self.atoms
        centre = x.index_select(0, j)
        u, v = x.index_select(0, i).sub_(centre), x.index_select(0, k).sub_(centre)
        p = cross(u, v)
        sine = dot(p, p).clamp_min_(SMALLEST_SQUARE).sqrt_()
        bend = torch.atan2(sine, dot(u, v)).sub_(self.angle)
        torque = self.stiffness * bend
        slope = torque / sine
        rows = torch.cat([cross(u, p), cross(p, v)])
        rows *= torch.cat(
            [slope / dot(u, u).clamp_min_(SMALLEST_SQUARE), slope / dot(v, v).clamp_min_(SMALLEST_SQUARE)]
        )[:, None]
        scatter(gradient, self.matrix, rows)
        return (torque * bend).sum(0).mul_(0.5)
