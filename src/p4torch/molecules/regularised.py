"""Energies that training can bear: linear up to a threshold, logarithmic above, finite always."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError


def regularised(energy: Tensor, linear: float, scale: float = 1.0, largest: float = math.inf) -> Tensor:
    """E where E ≤ linear, else linear + scale log(1 + (min(E, largest) - linear) / scale): C¹ up to `largest`.

    All in the unit of the energy. NaN, ∞ and -∞ become the largest value that a finite energy can have (that of
    `largest`, or of the largest number of the dtype), with a gradient of 0; so does the gradient above `largest`.
    """
    ceiling = min(largest, min(1.0, scale) * torch.finfo(energy.dtype).max)
    finite = torch.isfinite(energy)
    bounded = torch.where(finite, energy, ceiling).clamp_max(ceiling)
    above = bounded > linear
    excess = torch.where(above, bounded - linear, 0.0)
    return torch.where(above, linear + scale * torch.log1p(excess / scale), bounded)


class RegularisedEnergy(nn.Module):
    """`regularised(energy(x))` for any callable energy, x `(..., atoms, 3)` or `(..., n)` to `(...)`.

        energy = RegularisedEnergy(force_field, linear=1e4)              # kJ/mol, as the force field's energies
        energy = RegularisedEnergy(system.energy, linear=1e3, largest=1e20)  # kT

    linear, scale, largest: in the unit of the energy; see `regularised`. A frame whose energy or gradient is not finite
    gets a gradient of 0, and leaves the gradients of the other frames alone.
    Raises ArgumentError unless linear is finite, scale positive and largest > linear.
    """

    def __init__(
        self, energy: Callable[[Tensor], Tensor], linear: float, scale: float = 1.0, largest: float = math.inf
    ) -> None:
        super().__init__()
        if not math.isfinite(linear):
            raise ArgumentError.of("linear", "finite", linear)
        if not 0 < scale < math.inf:
            raise ArgumentError.of("scale", "positive and finite", scale)
        if not largest > linear:
            raise ArgumentError.of("largest", f"above linear = {linear}", largest)
        self.unregularised = energy
        self.linear, self.scale, self.largest = linear, scale, largest

    def forward(self, x: Tensor) -> Tensor:
        """The same as `energy`."""
        return self.energy(x)

    def energy(self, x: Tensor) -> Tensor:
        """The regularised energy `(...)`, in the unit of the energy."""
        shielded = x.view_as(x)
        energy = self.unregularised(shielded)
        if shielded.requires_grad:
            frame_axes = tuple(range(energy.dim() - x.dim(), 0))
            shielded.register_hook(lambda gradient: _finite_frames(gradient, frame_axes))
        return regularised(energy, self.linear, self.scale, self.largest)

    def extra_repr(self) -> str:
        return f"linear={self.linear:g}, scale={self.scale:g}, largest={self.largest:g}"


def _finite_frames(gradient: Tensor, frame_axes: tuple[int, ...]) -> Tensor:
    """The gradient, 0 in frames where it is not finite."""
    finite = torch.isfinite(gradient)
    for _ in frame_axes:
        finite = finite.all(-1)
    return torch.where(finite.view(*finite.shape, *(1 for _ in frame_axes)), gradient, 0.0)
