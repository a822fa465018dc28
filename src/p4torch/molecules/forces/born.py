"""Implicit solvent: generalized Born with a surface term."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p4torch.molecules.forces.geometry import incidence
from p4torch.molecules.forces.pairs import Distances

#: Radius of the probe that rolls over the surface, in nm.
PROBE = 0.14
#: Ineck = m0 / (1 + NECK2 (r - d0)² + NECK6 (r - d0)⁶), r in nm.
NECK2, NECK6 = 100.0, 0.3e6


class GeneralizedBorn(nn.Module):
    """E = -C/2 Σ_i q_i²/B_i - C Σ_{i<j} q_i q_j/f_ij + A Σ_i (R_i + 0.14 nm)² (R_i/B_i)⁶.

    f_ij² = r² + B_i B_j exp(-r² / (4 B_i B_j)), Born radius 1/B_i = 1/ρ_i - tanh(αψ - βψ² + γψ³)/R_i, ψ = I_i ρ_i,
    I_i = Σ_j [1/L - 1/U + (r - s_j²/r) (1/U² - 1/L²)/4 + ln(L/U)/(2r)]/2 where U > ρ_i, with U = r + s_j,
    L = max(ρ_i, |r - s_j|); plus 1/ρ_i - 1/L where s_j - r > ρ_i if `engulfed`; plus the necks.

    Onufriev, Bashford and Case, Proteins 55, 383 (2004); necks: Nguyen, Roe and Simmerling, J. Chem. Theory Comput. 9,
    2020 (2013); surface: Schaefer, Bartels and Karplus, J. Mol. Biol. 284, 835 (1998).
    Rows of directed pairs are i <- j and then j <- i for all i < j.

    charge: q in e. radius: R, offset: ρ = R - offset, scaled: s, in nm. polynomial: α, β, γ, `(3, atoms)`.
    coupling: C = (1/ε_solute - 1/ε_solvent) / (4π ε0) in kJ/mol nm / e². surface: A, 4π times the surface energy, in
    kJ/mol/nm². engulfed: whether an atom inside the sphere of another one gets the rest of its integral.
    neck: between two atoms, `(3, atoms, atoms)`, the row is the atom that is descreened: m0 times its scale in 1/nm, d0
    in nm, and the distance in nm beyond which there is none. Vectors are `(atoms,)`, all in float64.
    """

    atoms: Tensor
    charges: Tensor
    self_charges: Tensor
    radius: Tensor
    offset: Tensor
    polynomial: Tensor
    surface: Tensor
    descreened: Tensor
    scaled: Tensor
    scaled2: Tensor
    onto: Tensor
    neck: Tensor | None

    def __init__(
        self,
        charge: Tensor,
        radius: Tensor,
        offset: Tensor,
        scaled: Tensor,
        polynomial: Tensor,
        coupling: float,
        surface: float,
        engulfed: bool,
        neck: Tensor | None = None,
    ) -> None:
        super().__init__()
        count = len(charge)
        i, j = atoms = torch.triu_indices(count, count, offset=1)
        receivers, givers = torch.cat([i, j]), torch.cat([j, i])
        constants = {
            "atoms": atoms,
            "charges": (-coupling * charge[i] * charge[j])[:, None],
            "self_charges": (-0.5 * coupling * charge.square())[:, None],
            "radius": radius[:, None],
            "offset": offset[:, None],
            "polynomial": polynomial[..., None],
            "surface": (surface * (radius + PROBE).square() * radius**6)[:, None],
            "descreened": offset[receivers][:, None],
            "scaled": scaled[givers][:, None],
            "scaled2": scaled[givers].square()[:, None],
            "onto": incidence(count, receivers[None]),
            "neck": None if neck is None else neck[:, receivers, givers, None],
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.engulfed = engulfed
        self.reach = float((self.scaled - self.descreened).max()) if count > 1 else 0.0

    # --- as one writes it down --------------------------------------------------------------------------------

    def energy(self, r: Tensor) -> Tensor:
        """The energy `(...)` in kJ/mol for distances `(..., pairs)` in nm."""
        i, j = self.atoms
        born = self._born_radii(r)
        products = born[..., i] * born[..., j]
        r2 = r.square()
        f = (r2 + products * torch.exp(-r2 / (4 * products))).sqrt()
        charges, self_charges, surface = (
            value[:, 0].to(r.dtype) for value in (self.charges, self.self_charges, self.surface)
        )
        return (charges / f).sum(-1) + (self_charges / born + surface / born**6).sum(-1)

    def _born_radii(self, r: Tensor) -> Tensor:
        """B `(..., atoms)` in nm."""
        radius, offset = self.radius[:, 0].to(r.dtype), self.offset[:, 0].to(r.dtype)
        alpha, beta, gamma = self.polynomial[..., 0].to(r.dtype)
        psi = self._integrals(torch.cat([r, r], dim=-1)) @ self.onto.T.to(r.dtype) * offset
        return 1 / (1 / offset - torch.tanh(psi * (alpha - psi * (beta - psi * gamma))) / radius)

    def _integrals(self, r: Tensor) -> Tensor:
        """What each directed pair adds to I, for r `(..., directed pairs)`."""
        rho, s = self.descreened[:, 0].to(r.dtype), self.scaled[:, 0].to(r.dtype)
        lower = torch.maximum(rho, (r - s).abs())
        upper = torch.where(r + s > rho, r + s, lower)
        result = 0.5 * (1 / lower - 1 / upper + 0.25 * (r - s.square() / r) * (upper**-2 - lower**-2))
        result = result + 0.25 * torch.log(lower / upper) / r
        if self.engulfed:
            result = result + (1 / rho - 1 / torch.maximum(s - r, rho))
        if self.neck is not None:
            height, place, cutoff = self.neck[..., 0].to(r.dtype)
            t2 = (r - place).square()
            result = result + torch.where(r <= cutoff, height / (1 + NECK2 * t2 + NECK6 * t2**3), 0.0)
        return result

    # --- by hand ----------------------------------------------------------------------------------------------

    def add(self, at: Distances, slope: Tensor) -> Tensor:
        """Adds (dE/dr) / r to slope `(pairs, batch)`; returns the energy `(batch,)`."""
        integrals, integral_slopes = self._descreening(at)
        born, born_slope = self._born(self.onto @ integrals)
        energy, energy_slope = self._interactions(at, born, slope)
        chain = energy_slope.mul_(born_slope)
        pairs = len(slope)
        slope.addcmul_(chain.index_select(0, self.atoms[0]), integral_slopes[:pairs])
        slope.addcmul_(chain.index_select(0, self.atoms[1]), integral_slopes[pairs:])
        return energy

    def _descreening(self, at: Distances) -> tuple[Tensor, Tensor]:
        """The integrals of directed pairs and (dI/dr) / r, `(directed pairs, batch)`.

        Of L and U only the explicit r counts: the rest of the derivative is 0, but where s - r > ρ and not `engulfed`.
        """
        r, inverse = torch.cat([at.r, at.r]), torch.cat([at.inverse, at.inverse])
        lower = (r - self.scaled).abs_()
        torch.maximum(lower, self.descreened, out=lower)
        upper = r + self.scaled
        upper = torch.where(upper > self.descreened, upper, lower)
        log = (lower / upper).log_().mul_(inverse).mul_(0.25)
        lower, upper = lower.reciprocal_(), upper.reciprocal_()
        difference = lower - upper
        squares = upper.add_(lower).mul_(difference).mul_(0.125)
        weight = self.scaled2 * inverse
        integrals = difference.mul_(0.5).addcmul_(r.sub(weight), squares, value=-1).add_(log)
        slopes = weight.add_(r).mul_(squares).add_(log).mul_(inverse).mul_(inverse).neg_()
        if self.reach > 0 and bool(at.r.amin() < self.reach):
            self._engulf(r, lower, inverse, integrals, slopes)
        if self.neck is not None:
            self._necks(r, inverse, integrals, slopes)
        return integrals, slopes

    def _engulf(self, r: Tensor, lower: Tensor, inverse: Tensor, integrals: Tensor, slopes: Tensor) -> None:
        """What an atom inside another one's sphere adds. `lower` is 1/L."""
        inside = self.scaled - r > self.descreened
        if self.engulfed:
            integrals += torch.where(inside, self.descreened.reciprocal() - lower, 0.0)
        else:
            slopes += torch.where(inside, lower.square() * inverse, 0.0)

    def _necks(self, r: Tensor, inverse: Tensor, integrals: Tensor, slopes: Tensor) -> None:
        assert self.neck is not None
        height, place, cutoff = self.neck
        t = r - place
        t2 = t.square()
        t4 = t2.square()
        factor = (t4 * t2).mul_(NECK6).add_(t2, alpha=NECK2).add_(1).reciprocal_()
        result = (height * factor).masked_fill_(r > cutoff, 0.0)
        integrals += result
        slopes -= t4.mul_(6 * NECK6).add_(2 * NECK2).mul_(t).mul_(factor).mul_(result).mul_(inverse)

    def _born(self, integrals: Tensor) -> tuple[Tensor, Tensor]:
        """B and dB/dI, `(atoms, batch)`."""
        alpha, beta, gamma = self.polynomial
        psi = integrals * self.offset
        squashed = torch.tanh(psi * (alpha - psi * (beta - psi * gamma)))
        born = (self.offset.reciprocal() - squashed / self.radius).reciprocal_()
        inner = (alpha - psi * (2 * beta - 3 * gamma * psi)) * (1 - squashed.square())
        return born, inner * born.square() * (self.offset / self.radius)

    def _interactions(self, at: Distances, born: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """E `(batch,)` and ∂E/∂B `(atoms, batch)`; adds (∂E/∂r) / r to the slope."""
        products = born.index_select(0, self.atoms[0]).mul_(born.index_select(0, self.atoms[1]))
        quarter = at.r2 * 0.25
        decay = (quarter / products).neg_().exp_()
        inverse_f = torch.addcmul(at.r2, products, decay).rsqrt_()
        energies = self.charges * inverse_f
        steepness = inverse_f.square_().mul_(energies)
        alone, outside = self.self_charges / born, self.surface / born**6
        total = energies.sum(0) + (alone + outside).sum(0)
        products += quarter
        products.mul_(decay).mul_(steepness).mul_(-0.5)
        slope.addcmul_(decay.mul_(0.25).sub_(1), steepness)
        pairs = len(slope)
        paired = self.onto[:, :pairs] @ products
        paired.addmm_(self.onto[:, pairs:], products)
        return total, paired.sub_(alone).sub_(outside, alpha=6).div_(born)
