"""Bonds, angles, torsions and block modes made of comparable size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError
from p4torch.flows.monotone import wrapped

#: "circle": in [-π, π) rad, cut at the density's minimum. "standard": divided by their spread after the cut, too.
Torsions = Literal["circle", "standard"]

Atoms = tuple[int, ...]

#: Bins of the histogram that finds where a torsion is cut, and how many of them it is smoothed over.
BINS, SMOOTHED = 180, 9

#: A coordinate whose standard deviation over the frames (nm or rad) is not above this does not vary.
LEAST_SPREAD = 1e-8


@dataclass(frozen=True)
class Layout:
    """Where the coordinates stand in z `(..., n)`: block modes, bonds, angles, torsions, in this order.

    `bond_atoms[k]` are the two atoms of bond k, `angle_atoms[k]` the three of angle k, `torsion_atoms[k]` the four of
    torsion k, the placed atom first.
    """

    block: range
    bonds: range
    angles: range
    torsions: range
    bond_atoms: tuple[Atoms, ...]
    angle_atoms: tuple[Atoms, ...]
    torsion_atoms: tuple[Atoms, ...]

    @classmethod
    def of(
        cls, rows: Sequence[Atoms], modes: int = 0, bonds: Sequence[Atoms] = (), angles: Sequence[Atoms] = ()
    ) -> Layout:
        """From the rows of a z-matrix, and the block: how many modes it has, the atoms of its bonds and angles."""
        atoms = (*bonds, *(row[:2] for row in rows)), (*angles, *(row[:3] for row in rows)), tuple(rows)
        places = [range(*ends) for ends in pairwise(accumulate(map(len, atoms), initial=modes))]
        return cls(range(modes), places[0], places[1], places[2], *atoms)

    @property
    def size(self) -> int:
        """n."""
        return self.torsions.stop


class Standardiser(nn.Module):
    """z = (y - mean) / scale; torsions first become wrapped(φ - shift), in [-π, π).

    Coordinates stand first, `(n, batch)`. Before a fit, mean and shift are 0 and scale is 1.
    """

    mean: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, layout: Layout, torsions: Torsions) -> None:
        super().__init__()
        if torsions not in ("circle", "standard"):
            raise ArgumentError.of("torsions", '"circle" or "standard"', repr(torsions))
        self.start = layout.torsions.start
        self.mode = torsions
        self.register_buffer("mean", torch.zeros(layout.size, 1, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(layout.size, 1, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(len(layout.torsions), 1, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, y: Tensor, weights: Tensor) -> None:
        """Set everything by coordinates `(n, frames)` and weights `(frames,)` that sum to 1.

        Raises:
            ArgumentError: a coordinate does not vary.
        """
        self.shift.copy_(_cuts(y[self.start :], weights) + math.pi)
        y = self._cut(y)
        mean = y @ weights
        spread = ((y - mean.unsqueeze(-1)).square() @ weights).sqrt()
        if self.mode == "circle":
            mean[self.start :], spread[self.start :] = 0, 1
        still = (~(spread > LEAST_SPREAD)).nonzero().flatten().tolist()
        if still:
            raise ArgumentError.of("frames", "such that every coordinate varies", f"constant z[..., k], k = {still}")
        self.mean.copy_(mean.unsqueeze(-1))
        self.scale.copy_(spread.unsqueeze(-1))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(z, log|det ∂z/∂y|), the latter `()`."""
        return (self._cut(y) - self.mean.to(y.dtype)) / self.scale.to(y.dtype), -self._log_scale(y)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(y, log|det ∂y/∂z|); torsions come uncut, in shift + [-π, π)."""
        y = z * self.scale.to(z.dtype) + self.mean.to(z.dtype)
        return torch.cat([y[: self.start], y[self.start :] + self.shift.to(z.dtype)]), self._log_scale(z)

    def beyond_cut(self, y: Tensor) -> Tensor:
        """Whether a torsion of `inverse` lies outside shift + [-π, π), `(batch)`."""
        return ~((y[self.start :] - self.shift.to(y.dtype)).abs() <= math.pi).all(0)

    def _cut(self, y: Tensor) -> Tensor:
        return torch.cat([y[: self.start], wrapped(y[self.start :] - self.shift.to(y.dtype))])

    def _log_scale(self, y: Tensor) -> Tensor:
        return self.scale.log().sum().to(y.dtype)


def _cuts(phi: Tensor, weights: Tensor) -> Tensor:
    """Where the density of each torsion `(torsions, frames)` is least, `(torsions, 1)`: the middle of the widest such
    stretch of a smoothed circular histogram."""
    bins = ((wrapped(phi) + math.pi) * (BINS / (2 * math.pi))).long().clamp(max=BINS - 1)
    cuts = [_emptiest(torch.bincount(row, weights, minlength=BINS)) for row in bins]
    result = torch.tensor(cuts, dtype=phi.dtype, device=phi.device).reshape(-1, 1)
    return result * (2 * math.pi / BINS) - math.pi


def _emptiest(counts: Tensor) -> float:
    """The position, in bins, of the middle of the widest circular run of least values."""
    smooth = sum((counts.roll(k) for k in range(-(SMOOTHED // 2), SMOOTHED // 2 + 1)), torch.zeros_like(counts))
    least = (smooth <= smooth.min() + 1e-12 * smooth.max()).tolist()
    if all(least):
        return 0.0
    start = least.index(False)
    runs = []
    for low, run in groupby(least[start:] + least[:start]):
        width = len(list(run))
        if low:
            runs.append((width, -start))
        start += width
    width, start = max(runs)  # of equally wide ones, the first
    return (width / 2 - start) % len(least)
