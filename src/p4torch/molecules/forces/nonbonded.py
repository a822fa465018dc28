"""Lennard-Jones and Coulomb interactions without a cutoff."""

from __future__ import annotations

import math

from torch import Tensor, nn

from p4torch.molecules.forces.pairs import Distances

#: 1 / (4π ε0) in kJ/mol nm / e², from the CODATA 2018 values that OpenMM uses for e, the Avogadro constant and ε0.
COULOMB = 1e6 * 1.602176634e-19**2 * 6.02214076e23 / (4 * math.pi * 8.8541878128e-12)


class Nonbonded(nn.Module):
    """E = Σ_{i<j} 4ε ((σ/r)¹² - (σ/r)⁶) + q / (4π ε0 r).

    sigma: σ `(pairs,)` in nm. epsilon: ε `(pairs,)` in kJ/mol. charge: products of charges q `(pairs,)` in e².
    """

    sigma2: Tensor
    depth: Tensor
    charge: Tensor

    def __init__(self, sigma: Tensor, epsilon: Tensor, charge: Tensor) -> None:
        super().__init__()
        self.register_buffer("sigma2", sigma.where(epsilon != 0, 0.0).square()[:, None], persistent=False)
        self.register_buffer("depth", 4 * epsilon[:, None], persistent=False)
        self.register_buffer("charge", COULOMB * charge[:, None], persistent=False)

    def energy(self, r: Tensor) -> Tensor:
        """The energy `(...)` in kJ/mol for distances `(..., pairs)` in nm."""
        sigma2, depth, charge = (value[:, 0].to(r.dtype) for value in (self.sigma2, self.depth, self.charge))
        s6 = (sigma2 / r.square()) ** 3
        return (depth * s6 * (s6 - 1) + charge / r).sum(-1)

    def add(self, at: Distances, slope: Tensor) -> Tensor:
        """(dE/dr) / r = -(4ε (12 s¹² - 6 s⁶) + q / (4π ε0 r)) / r², s = σ/r."""
        s2 = self.sigma2 * at.inverse2
        s6 = s2.square().mul_(s2)
        attraction = self.depth * s6
        repulsion = s6.mul_(attraction)
        coulomb = self.charge * at.inverse
        energy = (repulsion - attraction).add_(coulomb).sum(0)
        slope.addcmul_(repulsion.mul_(12).sub_(attraction, alpha=6).add_(coulomb), at.inverse2, value=-1)
        return energy
