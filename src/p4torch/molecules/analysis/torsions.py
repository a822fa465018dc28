"""Torsion angles of frames, and arcs of the circle that they lie on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.analysis.inputs import refuse
from p4torch.molecules.geometry import torsion

Arc = tuple[float, float]
"""Angles from the first to the second, counter-clockwise, in rad: (2.4, 0) runs through π."""


def torsion_angles(frames: Tensor, atoms: Tensor) -> Tensor:
    """Torsion angles in rad, in [−π, π], of frames `(..., atoms, 3)` in nm; `atoms` is `(torsions, 4)`.

    With bonds b₁ = x₂ − x₁, b₂ = x₃ − x₂, b₃ = x₄ − x₃: φ = atan2(|b₂| b₁·(b₂ × b₃), (b₁ × b₂)·(b₂ × b₃)), the sign of
    IUPAC (positive if the far bond is turned clockwise), in float64. Well-conditioned at all angles, 0 and π included;
    0 where three neighbours lie on a line and no angle exists. Returns `(..., torsions)`.

    Raises:
        ArgumentError: wrong shapes, no frames, atoms that do not exist, or frames that are not finite.
    """
    if frames.dim() < 2 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise ArgumentError.of("frames", "of shape (..., atoms, 3), not empty", tuple(frames.shape))
    atoms = torch.as_tensor(atoms, device=frames.device)
    if atoms.dim() != 2 or atoms.shape[-1] != 4 or atoms.is_floating_point():
        raise ArgumentError.of("atoms", "integers of shape (torsions, 4)", f"{atoms.dtype} of {tuple(atoms.shape)}")
    if bool(((atoms < 0) | (atoms >= frames.shape[-2])).any()):
        raise ArgumentError.of("atoms", f"in 0 ... {frames.shape[-2] - 1}", atoms.tolist())
    refuse(~frames.isfinite().flatten(-2).all(-1).flatten(), "frames", "finite", "not finite")
    first, second, third, fourth = frames.detach().to(torch.float64)[..., atoms, :].unbind(-2)
    return torsion(first, second, third, fourth)


def in_arc(angles: Tensor, arc: Arc, name: str = "region") -> Tensor:
    """Which angles lie in an arc, its start included and its end not.

    Raises:
        ArgumentError: the arc is empty, the whole circle, or not finite.
    """
    start, end = arc
    width = math.fmod(end - start, 2 * math.pi) if math.isfinite(end - start) else 0.0
    if width == 0 or abs(end - start) >= 2 * math.pi:
        raise ArgumentError.of(name, "two angles in rad, different and less than 2π apart", arc)
    return torch.remainder(angles - start, 2 * math.pi) < width % (2 * math.pi)


def arc_text(arc: Arc) -> str:
    """For people, in both units: "0 to 2.4 rad (0° to 138°)"."""
    start, end = arc
    return f"{start:g} to {end:g} rad ({math.degrees(start):.0f}° to {math.degrees(end):.0f}°)"


def bin_index(angles: Tensor, bins: int) -> Tensor:
    """The bin of each angle out of `bins` equal ones over [−π, π); angles are taken modulo 2π."""
    return ((angles + math.pi) * (bins / (2 * math.pi))).floor().long().remainder(bins)


def bin_edges(bins: int) -> Tensor:
    """`(bins + 1,)`: −π ... π in rad."""
    return torch.linspace(-math.pi, math.pi, bins + 1, dtype=torch.float64)
