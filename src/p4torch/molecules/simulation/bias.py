"""A bias on torsions: short Fourier series that flatten their distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import openmm
import torch
from torch import Tensor

from p4torch.molecules.analysis.torsions import torsion_angles
from p4torch.molecules.torsion_names import Torsion

#: Terms of the series.
TERMS = 6
#: The force group of the bias: energies of the molecule alone leave it out.
GROUP = 31

_BINS = 72
#: Of coefficients in kJ/mol: rounding that differs from process to process would grow into other trajectories.
_DECIMALS = 6
#: Share of a histogram that is spread evenly: what was not visited yet counts as rare, not as impossible.
_SPREAD = 0.02


@dataclass(frozen=True)
class TorsionBias:
    """V(x) = Σ_t Σ_{n=1..6} a_tn cos nθ_t + b_tn sin nθ_t, in kJ/mol.

    `coefficients` is `(torsions, 12)`: a_1, b_1, a_2, b_2, ...
    """

    torsions: tuple[Torsion, ...]
    coefficients: Tensor

    @classmethod
    def zero(cls, torsions: tuple[Torsion, ...]) -> TorsionBias:
        """No bias yet."""
        return cls(torsions, torch.zeros(len(torsions), 2 * TERMS, dtype=torch.float64))

    def angles(self, frames: Tensor) -> Tensor:
        """θ `(..., torsions)`, in rad, of frames `(..., atoms, 3)`."""
        return torsion_angles(frames, torch.tensor(self.torsions))

    def energy(self, angles: Tensor) -> Tensor:
        """V `(...)` in kJ/mol, of angles `(..., torsions)`."""
        return (_basis(angles.double()) * self.coefficients).sum((-2, -1))

    def force(self) -> openmm.CustomTorsionForce:
        """The same for OpenMM."""
        terms = (f"a{n}*cos({n}*theta)+b{n}*sin({n}*theta)" for n in range(1, TERMS + 1))
        force = openmm.CustomTorsionForce("+".join(terms))
        for n in range(1, TERMS + 1):
            force.addPerTorsionParameter(f"a{n}")
            force.addPerTorsionParameter(f"b{n}")
        for atoms, row in zip(self.torsions, self.coefficients.tolist(), strict=True):
            force.addTorsion(*atoms, row)
        force.setForceGroup(GROUP)
        return force

    def apply(self, force: openmm.CustomTorsionForce, context: openmm.Context) -> None:
        """Give a running simulation these coefficients."""
        for index, (atoms, row) in enumerate(zip(self.torsions, self.coefficients.tolist(), strict=True)):
            force.setTorsionParameters(index, *atoms, row)
        force.updateParametersInContext(context)

    def flattened(self, angles: Tensor, kT: float, gain: float) -> TorsionBias:
        """V + gain · kT ln p̂, where p̂ is each torsion's histogram in angles `(frames, torsions)` of a run under V.

        On the evenly spaced bins cosines and sines are orthogonal: each coefficient is a sum of its own.
        """
        grid = _grid()
        basis = _basis(grid)
        rows = []
        for theta in angles.double().unbind(-1):
            counts = torch.histc(theta, _BINS, -math.pi, math.pi)
            probabilities = (1 - _SPREAD) * counts / counts.sum() + _SPREAD / _BINS
            rows.append(basis.mT @ (kT * probabilities.log()) * (2 / _BINS))
        result = self.coefficients + gain * torch.stack(rows)
        return TorsionBias(self.torsions, result.round(decimals=_DECIMALS))

    def scaled_to_ess(self, kT: float, ess: float) -> TorsionBias:
        """The strongest α V, α ≤ 1, whose samples keep an effective sample size of `ess` after reweighting.

        V is taken for -F, the free energies of independent torsions, p ∝ e^(V/kT): samples of p^(1-α) have the
        effective size Π_t 1 / ∫ p^(1+α) ∫ p^(1-α), falling from 1 at α = 0.
        """
        free = (_basis(_grid()) @ self.coefficients.mT / kT).T  # ln p but for a constant, (torsions, bins)
        log_p = free - free.logsumexp(-1, keepdim=True)
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            size = -(((1 + middle) * log_p).logsumexp(-1) + ((1 - middle) * log_p).logsumexp(-1)).sum()
            low, high = (middle, high) if size >= math.log(ess) else (low, middle)
        return TorsionBias(self.torsions, low * self.coefficients)


def _grid() -> Tensor:
    """The centres of the bins."""
    return (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (2 * math.pi / _BINS) - math.pi


def _basis(angles: Tensor) -> Tensor:
    """cos θ, sin θ, cos 2θ, ...: `(..., 12)`."""
    n = torch.arange(1, TERMS + 1, dtype=torch.float64) * angles.unsqueeze(-1)
    return torch.stack([n.cos(), n.sin()], dim=-1).flatten(-2)
