"""Bond, angle and torsion of an atom seen from three others, and the way back.

An atom d is seen from its partners c (bond), b (angle) and a (torsion). With p = d - c, u = (b - c)/|b - c| and
w = a - b, v_⊥ = v - (v·u) u:

    r = |p|,   cos θ = p·u / r,   tan φ = w·(u × p) / (w_⊥·p)
    d = c + r (cos θ u + sin θ (cos φ m + sin φ m × u)),   m = w_⊥ / |w_⊥|

φ is the torsion a-b-c-d in IUPAC's sign, 0 for cis. The volume element is d³d = r² sin θ dr dθ dφ. Lengths in nm,
angles in rad. The three components of a point lie along `dim`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: A bond shorter than this (nm), or an atom closer than this to the line it is seen along, is degenerate: lengths are
#: not taken for less, so that logarithms and gradients stay finite. Single precision still resolves it.
LEAST_LENGTH = 1e-5


class Seen(NamedTuple):
    """An atom as its partners see it; every field `(...)`."""

    bond: Tensor
    angle: Tensor
    torsion: Tensor
    log_volume: Tensor


def dot(a: Tensor, b: Tensor, dim: int = -1) -> Tensor:
    """a·b."""
    return (a * b).sum(dim)


def length(v: Tensor, dim: int = -1) -> Tensor:
    """|v|, at least `LEAST_LENGTH`; there, the gradient is zero."""
    return dot(v, v, dim).clamp_min(LEAST_LENGTH**2).sqrt()


def unit(v: Tensor, dim: int = -1) -> Tensor:
    """v / |v|."""
    return v / length(v, dim).unsqueeze(dim)


def across(v: Tensor, u: Tensor, dim: int = -1) -> Tensor:
    """The part of v perpendicular to a unit vector u."""
    return v - dot(v, u, dim).unsqueeze(dim) * u


def bond(c: Tensor, d: Tensor, dim: int = -1) -> Tensor:
    """|d - c| in nm."""
    return length(d - c, dim)


def angle(b: Tensor, c: Tensor, d: Tensor, dim: int = -1) -> Tensor:
    """The angle b-c-d in (0, π)."""
    u, p = unit(b - c, dim), d - c
    return torch.atan2(length(torch.linalg.cross(u, p, dim=dim), dim), dot(u, p, dim))


def torsion(a: Tensor, b: Tensor, c: Tensor, d: Tensor, dim: int = -1) -> Tensor:
    """The torsion a-b-c-d in [-π, π], 0 where it is undefined."""
    return see(a, b, c, d, dim).torsion


def see(a: Tensor, b: Tensor, c: Tensor, d: Tensor, dim: int = -1) -> Seen:
    """Bond, angle, torsion and log(r² sin θ) of d."""
    u, p, w = unit(b - c, dim), d - c, a - b
    normal = torch.linalg.cross(u, p, dim=dim)
    away, along, r = length(normal, dim), dot(u, p, dim), length(p, dim)
    sine, cosine = dot(w, normal, dim), dot(w, p, dim) - along * dot(w, u, dim)
    defined = sine.abs() + cosine.abs() > LEAST_LENGTH**2
    phi = torch.atan2(torch.where(defined, sine, 0), torch.where(defined, cosine, 1))
    return Seen(r, torch.atan2(away, along), phi, (r * away).log())


def place(a: Tensor, b: Tensor, c: Tensor, r: Tensor, theta: Tensor, phi: Tensor, dim: int = -1) -> Tensor:
    """The atom d that its partners see at (r, θ, φ)."""
    u = unit(b - c, dim)
    m = unit(across(a - b, u, dim), dim)
    around = phi.cos().unsqueeze(dim) * m + phi.sin().unsqueeze(dim) * torch.linalg.cross(m, u, dim=dim)
    return c + r.unsqueeze(dim) * (theta.cos().unsqueeze(dim) * u + theta.sin().unsqueeze(dim) * around)


def log_volume(r: Tensor, theta: Tensor) -> Tensor:
    """log(r² |sin θ|), with both lengths at least `LEAST_LENGTH`."""
    return r.abs().clamp_min(LEAST_LENGTH).log() + (r * theta.sin()).abs().clamp_min(LEAST_LENGTH).log()


def degenerate(a: Tensor, b: Tensor, c: Tensor, d: Tensor, dim: int = -1) -> Tensor:
    """Whether bond, angle or torsion of d, or a gradient of theirs, is undefined."""
    u, p = unit(b - c, dim), d - c
    return vanishing(b - c, p, across(p, u, dim), across(a - b, u, dim), dim=dim)


def vanishing(*vectors: Tensor, dim: int) -> Tensor:
    """Whether any of the vectors is not longer than `LEAST_LENGTH`."""
    return ~torch.stack([dot(v, v, dim) > LEAST_LENGTH**2 for v in vectors]).all(0)
