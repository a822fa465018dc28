"""Superposition of atoms on a reference, and what it costs: the Eckart Jacobian.

Points stand as components first, `(3, atoms, batch)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError

#: M of `EckartBlock` counts as singular where a leading minor of order k is below the k-th power of this (nm²): the
#: atoms lie in a line, or fit two orientations equally well. Single precision still resolves it.
LEAST_MOMENT = 1e-7

#: How often the mean structure of frames is superposed on and taken anew; it settles within three.
ROUNDS = 10

#: Of Newton's method after a superposition: with two, derivatives are exact up to the third.
STEPS = 2


def centred(x: Tensor) -> Tensor:
    """x less the mean over atoms."""
    return x - x.mean(1, keepdim=True)


def moments(s: Tensor, reference: Tensor) -> Tensor:
    """C = Σ_i s_i r_iᵀ, `(3, 3, batch)`, of points `(3, atoms, batch)` and a reference `(atoms, 3)`."""
    return torch.einsum("kib,il->klb", s, reference)


@torch.no_grad()
def best_rotation(c: Tensor) -> Tensor:
    """The rotations R `(batch, 3, 3)` that maximise Σ_i r_i·R s_i, from C = Σ_i s_i r_iᵀ `(3, 3, batch)`.

    R belongs to the unit quaternion that is the top eigenvector of a symmetric 4 x 4 matrix linear in C (Horn, J. Opt.
    Soc. Am. A 4 (1987) 629). Frames that are not finite are left as they are.
    """
    c = torch.where(c.isfinite().all(0).all(0), c, 0)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = c
    rows = (
        (xx + yy + zz, yz - zy, zx - xz, xy - yx),
        (yz - zy, xx - yy - zz, xy + yx, zx + xz),
        (zx - xz, xy + yx, yy - xx - zz, yz + zy),
        (xy - yx, zx + xz, yz + zy, zz - xx - yy),
    )
    w, x, y, z = torch.linalg.eigh(torch.stack([torch.stack(row, -1) for row in rows], -2))[1][..., -1].unbind(-1)
    rotation = (
        (w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z),
    )
    return torch.stack([torch.stack(row, -1) for row in rotation], -2)


def superpose(x: Tensor, reference: Tensor) -> Tensor:
    """Points `(..., atoms, 3)` moved onto a centred reference `(atoms, 3)`: mean at 0, rotation of the best fit."""
    points = centred(x.reshape(-1, *x.shape[-2:]).permute(2, 1, 0))
    return rotated_onto(points, reference).permute(2, 1, 0).reshape(x.shape)


def rotated_onto(y: Tensor, reference: Tensor) -> Tensor:
    """Centred points in the orientation where Σ_i r_i x s_i = 0 and Σ_i r_i·s_i is largest.

    The rotation itself is found outside the graph: no eigenvector is differentiated. Steps of Newton's method on the
    condition follow, each a rotation, which squares the error of the one before: k of them carry the exact derivatives
    up to order 2ᵏ - 1.
    """
    c = moments(y, reference)
    rotation = best_rotation(c.detach()).permute(1, 2, 0)
    for _ in range(STEPS):
        rotation = _times(_rotation(_newton_step(_times(rotation, c))), rotation)
    return _times(rotation, y)


def _times(rotation: Tensor, points: Tensor) -> Tensor:
    """R s_i of `(3, 3, batch)` and `(3, atoms, batch)`."""
    return torch.einsum("klb,lib->kib", rotation, points)


def _newton_step(c: Tensor) -> Tensor:
    """δ `(3, batch)` with M δ = -Σ_i r_i x s_i, from C = Σ_i s_i r_iᵀ; 0 where M is singular."""
    torque = torch.stack([c[2, 1] - c[1, 2], c[0, 2] - c[2, 0], c[1, 0] - c[0, 1]])
    m = eckart(c)
    volume = determinant(m)
    solvable = volume.abs() > LEAST_MOMENT**3
    first, second, third = m
    delta = (
        torque[0] * torch.linalg.cross(second, third, dim=0)
        + torque[1] * torch.linalg.cross(third, first, dim=0)
        + torque[2] * torch.linalg.cross(first, second, dim=0)
    ) / torch.where(solvable, volume, 1)
    return torch.where(solvable, -delta, 0)


def _rotation(delta: Tensor) -> Tensor:
    """The rotation by 2 arctan(|δ|/2) about δ `(3, batch)`, `(3, 3, batch)`: s + δ x s, to first order.

    With d = δ/2, ((1 - |d|²) 1 + 2 [d]ₓ + 2 d dᵀ) / (1 + |d|²).
    """
    x, y, z = d = delta / 2
    square, zero = d.square().sum(0), torch.zeros_like(x)
    across = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).unflatten(0, (3, 3))
    unit = torch.eye(3, dtype=d.dtype, device=d.device).unsqueeze(-1)
    return ((1 - square) * unit + 2 * across + 2 * d.unsqueeze(1) * d) / (1 + square)


def eckart(c: Tensor) -> Tensor:
    """M = Σ_i [(r_i·s_i) I - s_i r_iᵀ] = tr(C) I - C, `(3, 3, batch)`, of superposed points."""
    trace = c[0, 0] + c[1, 1] + c[2, 2]
    return trace * torch.eye(3, dtype=c.dtype, device=c.device).unsqueeze(-1) - c


def determinant(m: Tensor) -> Tensor:
    """det M of `(3, 3, batch)`."""
    return (m[0] * torch.linalg.cross(m[1], m[2], dim=0)).sum(0)


def fits_best(m: Tensor) -> Tensor:
    """Whether M is positive definite beyond doubt: only then is the orientation the best fit, and the only one."""
    minors = (m[0, 0], m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0], determinant(m))
    return torch.stack([minor > LEAST_MOMENT**k for k, minor in enumerate(minors, 1)]).all(0)


class EckartBlock(nn.Module):
    """The shape of m atoms in 3m - 6 linear coordinates q = Bᵀ s.

    s are the atoms with their mean at 0, in the orientation that fits a reference r best, which then satisfies Eckart's
    conditions Σ_i r_i x s_i = 0. B `(3m, 3m - 6)` has orthonormal columns that span all s with Σ_i s_i = 0 and
    Σ_i r_i x s_i = 0, principal axes of the frames first. With x_i = t + Rᵀ s_i, dR the Haar measure of total 8π²:

        d^{3m}x = J dt dR dq,   J = m^{3/2} |det M| / sqrt(det I),
        M = Σ_i [(r_i·s_i) I - s_i r_iᵀ],   I = Σ_i [(r_i·r_i) I - r_i r_iᵀ]

    Source of the conditions: Eckart, Phys. Rev. 47 (1935) 552; J follows from projecting ∂x/∂(t, R) onto the
    complement of B.
    """

    reference: Tensor
    basis: Tensor

    def __init__(self, atoms: int) -> None:
        super().__init__()
        self.atoms = atoms
        self.size = 3 * atoms - 6
        self.register_buffer("reference", torch.zeros(atoms, 3, dtype=torch.float64))
        self.register_buffer("basis", torch.zeros(3 * atoms, self.size, dtype=torch.float64))

    @torch.no_grad()
    def refer(self, reference: Tensor) -> None:
        """Superpose on `(m, 3)`, with any orthonormal B.

        Raises:
            ArgumentError: the atoms lie in a line.
        """
        reference = reference - reference.mean(0)
        least = float(torch.linalg.eigvalsh(_inertia(reference))[0])
        if least <= LEAST_MOMENT:
            raise ArgumentError.of("reference", "a block that does not lie in a line", f"a moment of {least:.3g} nm²")
        self.reference.copy_(reference)
        self.basis.copy_(_eckart_space(reference))

    @torch.no_grad()
    def fit(self, frames: Tensor, weights: Tensor, find_reference: bool = True) -> None:
        """Set B to the principal axes of frames `(frames, m, 3)`, first the reference to their mean, superposed on
        itself; weights sum to 1."""
        if find_reference:
            mean = frames[0] - frames[0].mean(0)
            for _ in range(ROUNDS):
                mean = torch.einsum("f,fik->ik", weights, superpose(frames, mean))
            self.refer(mean)
        q = superpose(frames, self.reference).flatten(1) @ self.basis
        q = q - weights @ q
        axes = torch.linalg.eigh((q * weights.unsqueeze(-1)).T @ q)[1].flip(-1)
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        self.basis.copy_(self.basis @ (axes * largest.sign()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(q `(3m - 6, batch)`, no bonds, no angles, log J `(batch)`) of atoms `(3, m, batch)` anywhere in space."""
        s = rotated_onto(centred(x), self.reference.to(x.dtype))
        q = self.basis.to(x.dtype).T @ s.transpose(0, 1).flatten(0, 1)
        return q, q[:0], q[:0], self._log_volume(s)

    def place(self, modes: Tensor, bonds: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """(s `(3, m, batch)`, log J) of coordinates q `(3m - 6, batch)`."""
        s = (self.basis.to(modes.dtype) @ modes).unflatten(0, (self.atoms, 3)).transpose(0, 1)
        return s, self._log_volume(s)

    def degenerate(self, x: Tensor) -> Tensor:
        """Whether atoms fit no orientation best."""
        return self.outside(rotated_onto(centred(x), self.reference.to(x.dtype)))

    def outside(self, x: Tensor) -> Tensor:
        """Whether atoms are in another orientation than the one that fits best."""
        return ~fits_best(eckart(moments(x, self.reference.to(x.dtype))))

    def _log_volume(self, s: Tensor) -> Tensor:
        reference = self.reference.to(s.dtype)
        inertia = torch.linalg.det(_inertia(reference))
        constant = 1.5 * math.log(self.atoms) - inertia.clamp_min(LEAST_MOMENT**3).log() / 2
        return determinant(eckart(moments(s, reference))).abs().clamp_min(LEAST_MOMENT**3).log() + constant


def _inertia(reference: Tensor) -> Tensor:
    """I = Σ_i [(r_i·r_i) 1 - r_i r_iᵀ]."""
    return eckart((reference.T @ reference).unsqueeze(-1)).squeeze(-1)


def _eckart_space(reference: Tensor) -> Tensor:
    """Orthonormal columns `(3m, 3m - 6)` that span all s with Σ_i s_i = 0 and Σ_i r_i x s_i = 0."""
    axes = torch.eye(3, dtype=reference.dtype, device=reference.device)
    rotations = [torch.linalg.cross(axis.expand_as(reference), reference).flatten() for axis in axes]
    motions = torch.stack([*axes.repeat(1, len(reference)), *rotations], -1)
    return torch.linalg.svd(motions)[0][:, 6:]
