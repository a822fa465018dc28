"""Torsions with a Fourier series each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p4torch.molecules.forces.geometry import SMALLEST_SQUARE, cross, dot, incidence, scatter


class FourierTorsions(nn.Module):
    """E = Σ_torsions Σ_n a_n cos nφ + b_n sin nφ, n = 0 ... order.

    tan φ = |b2| b1 · (b2 × b3) / ((b1 × b2) · (b2 × b3)) with the bond vectors b1, b2, b3 along the four atoms.
    atoms: `(4, torsions)`. cosines, sines: a and b, `(order + 1, torsions)`, in kJ/mol.
    cos nφ and sin nφ follow from cos φ and sin φ by their addition theorems: no angle is ever formed.
    Three collinear atoms give a finite energy and a gradient of 0.
    Gradient: Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996).
    """

    atoms: Tensor
    cosines: Tensor
    sines: Tensor
    matrix: Tensor

    def __init__(self, count: int, atoms: Tensor, cosines: Tensor, sines: Tensor) -> None:
        super().__init__()
        self.register_buffer("atoms", atoms, persistent=False)
        self.register_buffer("cosines", cosines[:, :, None], persistent=False)
        self.register_buffer("sines", sines[:, :, None], persistent=False)
        self.register_buffer("matrix", incidence(count, atoms.reshape(1, -1)), persistent=False)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `(...)` in kJ/mol for x `(..., atoms, 3)` in nm."""
        i, j, k, l = (x[..., index, :] for index in self.atoms)  # noqa: E741
        b1, b2, b3 = j - i, k - j, l - k
        m, n = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
        axis = b2.square().sum(-1).clamp_min(SMALLEST_SQUARE).sqrt()
        adjacent, opposite = (m * n).sum(-1), axis * (b1 * n).sum(-1)
        collinear = (adjacent == 0) & (opposite == 0)
        phi = torch.atan2(opposite, torch.where(collinear, 1.0, adjacent))
        order = torch.arange(len(self.cosines), dtype=x.dtype, device=x.device)[:, None]
        angles = order * phi[..., None, :]
        cosines, sines = self.cosines[..., 0].to(x.dtype), self.sines[..., 0].to(x.dtype)
        return (cosines * angles.cos() + sines * angles.sin()).sum((-2, -1))

    def add(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dE/dx_i = -(dE/dφ) |b2| m / m², dE/dx_l = (dE/dφ) |b2| n / n², and what they exert on the axis."""
        i, j, k, l = (x.index_select(0, index) for index in self.atoms)  # noqa: E741
        b1, b2, b3 = j - i, k.sub(j), l.sub_(k)
        m, n = cross(b1, b2), cross(b2, b3)
        axis2 = dot(b2, b2).clamp_min_(SMALLEST_SQUARE)
        axis = axis2.sqrt()
        energy, slope = self._series(dot(m, n), dot(b1, n).mul_(axis))
        slope *= axis
        first = m.mul_((slope / dot(m, m).clamp_min_(SMALLEST_SQUARE)).neg_()[:, None])
        last = n.mul_((slope / dot(n, n).clamp_min_(SMALLEST_SQUARE))[:, None])
        turn = first * (dot(b1, b2) / axis2)[:, None] - last * (dot(b3, b2) / axis2)[:, None]
        scatter(gradient, self.matrix, torch.cat([first, -first - turn, turn - last, last]))
        return energy

    def _series(self, adjacent: Tensor, opposite: Tensor) -> tuple[Tensor, Tensor]:
        """E summed over torsions `(batch,)`, and dE/dφ `(torsions, batch)`."""
        radius = torch.hypot(adjacent, opposite)
        collinear = radius == 0
        radius = radius.masked_fill_(collinear, 1.0)
        cosine, sine = (adjacent / radius).masked_fill_(collinear, 1.0), opposite / radius
        energy, slope = self.cosines[0].expand_as(cosine).clone(), torch.zeros_like(cosine)
        c, s = cosine, sine
        for n in range(1, len(self.cosines)):
            if n > 1:
                c, s = c * cosine - s * sine, s * cosine + c * sine
            a, b = self.cosines[n], self.sines[n]
            energy.addcmul_(a, c).addcmul_(b, s)
            slope.addcmul_(b, c, value=n).addcmul_(a, s, value=-n)
        return energy.sum(0), slope
