"""Internal coordinates: bonds, angles and torsions for all atoms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError
from p4torch.molecules.geometry import LEAST_LENGTH, across, angle, bond, log_volume, unit, vanishing
from p4torch.molecules.shape import ShapeCoordinates, usable_frames
from p4torch.molecules.standard import Layout, Torsions
from p4torch.molecules.zmatrix import ZMatrix


class InternalCoordinates(ShapeCoordinates):
    """x `(..., atoms, 3)` in nm <-> z `(..., 3 atoms - 6)`: bonds, angles and torsions, standardised.

    The block is three atoms a-b-c, seen by r = |a - b|, s = |c - b| and the angle θ_b. With t the place of a, dR the
    Haar measure on SO(3) of total volume 8π², and (r_i, θ_i, φ_i) of the other atoms:

        d^{3 atoms}x = r² s² sin θ_b Π_i r_i² sin θ_i  dt dR dr ds dθ_b Π_i dr_i dθ_i dφ_i

    A molecule with the density exp(-U(x)/kT) in x thus has log-density -U/kT - log|det| + constant in z, log|det| as
    `forward` returns it (or + log|det| as `inverse` does). Nothing is left out of either: per frame, the volume of
    rigid motions is that of t and 8π².

    `inverse` puts a at 0, b on the x axis and c in the xy plane. Bonds and angles are less their mean, by their
    standard deviation. Torsions are cut where their density is least and lie in [-π, π).

    Work is done in the dtype of the points; constants are made in float64.

    Args:
        zmatrix: with a block of three atoms, as `ZMatrix.from_topology(topology, block="chain")` makes it.
        frames: `(frames, atoms, 3)` that set means, scales and cuts; without them these are 0, 1 and π.
        weights: of the frames `(frames,)`; equal by default.
        torsions: "circle" leaves them in rad, in [-π, π); "standard" takes mean and standard deviation out, too.

    Raises:
        ArgumentError: the block has not three atoms; or the frames do not fit the z-matrix, are not finite, degenerate,
            or do not vary.
    """

    def __init__(
        self,
        zmatrix: ZMatrix,
        frames: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        torsions: Torsions = "circle",
    ) -> None:
        if len(zmatrix.block) != 3:
            raise ArgumentError.of("zmatrix", "one with a block of three atoms", f"{len(zmatrix.block)} of them")
        first, second, third = zmatrix.block
        bonds, angles = ((second, first), (third, second)), ((third, second, first),)
        layout = Layout.of(zmatrix.rows, bonds=bonds, angles=angles)
        super().__init__(zmatrix, Triangle(), layout, torsions)
        if frames is not None:
            self._fit(*usable_frames(zmatrix, frames, weights))


class Triangle(nn.Module):
    """Atoms a-b-c `(3, 3, batch)` as two bonds and the angle between them; d⁹x = r² s² sin θ dt dR dr ds dθ."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, c = x.unbind(1)
        first, second, theta = bond(a, b, dim=0), bond(b, c, dim=0), angle(a, b, c, dim=0)
        bonds = torch.stack([first, second])
        return bonds[:0], bonds, theta.unsqueeze(0), _log_volume(first, second, theta)

    def place(self, modes: Tensor, bonds: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """a at 0, b on the x axis, c in the upper half of the xy plane."""
        (first, second), (theta,) = bonds, angles
        zero = torch.zeros_like(first)
        a, b = torch.stack([zero, zero, zero]), torch.stack([first, zero, zero])
        c = torch.stack([first - second * theta.cos(), second * theta.sin(), zero])
        return torch.stack([a, b, c], 1), _log_volume(first, second, theta)

    def degenerate(self, x: Tensor) -> Tensor:
        """Whether two atoms coincide or the three lie in a line."""
        a, b, c = x.unbind(1)
        p, v = a - b, c - b
        return vanishing(p, v, across(v, unit(p, 0), 0), dim=0)

    def outside(self, x: Tensor) -> Tensor:
        """Never: bonds and angles say it."""
        return torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)


def _log_volume(first: Tensor, second: Tensor, theta: Tensor) -> Tensor:
    return log_volume(second, theta) + 2 * first.abs().clamp_min(LEAST_LENGTH).log()
