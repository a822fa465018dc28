"""The density of a molecule's configurations under a flow, its losses and its samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from p4torch._options import check_integer, check_tensor
from p4torch.errors import ArgumentError
from p4torch.flows import Flow, path_loss
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.mixed import MixedCoordinates
from p4torch.molecules.regularised import RegularisedEnergy, regularised
from p4torch.molecules.system import MolecularSystem

#: Energies of training are linear up to so many kT, and logarithmic above; a clash has 1e10 and more.
LINEAR, LARGEST = 1e3, 1e20
#: Of what a point adds to a path gradient, per coordinate: a point of a good flow has 1. Without one, a flow of 12
#: couplings was lost within 100 steps.
BOUND = 2.0
#: Samples that are drawn together: bounds the memory.
BATCH = 8192


class MolecularFlow(nn.Module):
    """A flow between a latent distribution and the configurations of a molecule, through `MixedCoordinates`.

    With z the coordinates, q the flow's density of them and x their configuration in standard position,
    the target is p(z) ∝ exp(-u(x)) |det ∂x/∂z|, u = U / kT. Samples z ~ q have log w = -u(x) + log|det| - log q(z).

    Args:
        system: the molecule, its physics and its temperature.
        coordinates: of its frames.
        flow: over the coordinates.
        model: the architecture's name, for files.
    """

    def __init__(self, system: MolecularSystem, coordinates: MixedCoordinates, flow: Flow, model: str = "") -> None:
        super().__init__()
        if coordinates.layout.size != 3 * system.atoms - 6:
            raise ArgumentError.of("coordinates", f"of {system.atoms} atoms", f"{coordinates.layout.size} coordinates")
        self.system, self.model = system, model
        self.coordinates, self.flow = coordinates, flow
        self.potential = RegularisedEnergy(system.energy, LINEAR, largest=LARGEST)

    def log_prob(self, frames: Tensor) -> Tensor:
        """log q of the coordinates of frames `(..., atoms, 3)`, `(...)`: a density per unit of the coordinates."""
        check_tensor("frames", frames)
        return self.log_density(self.coordinates(frames.double())[0])

    def log_density(self, z: Tensor) -> Tensor:
        """log q of coordinates `(..., n)` of any dtype, `(...)`, in that of the flow."""
        check_tensor("z", z)
        return self.flow.log_prob(z.to(next(self.flow.parameters(), torch.empty(0)).dtype))

    def energy_loss(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(mean of u - log|det| + log q, number of broken energies) at the images of latent points `(n, features)`.

        The mean is KL(q‖p) up to a constant, its energies regularised. Where an energy is not finite, or above all
        bounds, it has no gradient, and is counted.
        """
        z, log_latent = self.flow.bijection.inverse(latent)
        x, logabsdet = self.coordinates.inverse(z)
        energies = self.potential(x)
        loss = (energies - logabsdet - log_latent).mean() + self.flow.base.log_prob(latent).mean()
        return loss, (energies.detach() >= self._top(energies)).sum()

    def force_loss(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(mean of -log q, number of broken energies) at the images of latent points `(n, features)`, by their weights.

        The gradient of the mean is its path gradient, `p4torch.flows.path_loss`. Broken energies have no weight.
        """
        with torch.no_grad():
            z, logabsdet = self.flow.bijection.inverse(latent)
            log_prob = self.flow.base.log_prob(latent) - logabsdet
        log_target, score = self.target(z)
        log_weights = (log_target - log_prob).where(~self.coordinates.outside(z), -math.inf)
        weights = log_weights.softmax(0).to(z.dtype)
        loss = path_loss(self.flow, z, score, weights, bound=BOUND * math.sqrt(z.shape[-1]))
        return loss, score.isnan().any(-1).sum()

    @torch.enable_grad()
    def target(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z) = -u(x) + log|det ∂x/∂z| + const of coordinates `(..., n)`, `(...)`, in float64, and its gradient
        `(..., n)`, the score, in their dtype: forces, and how volume grows.

        Where the energy is not finite, or above all bounds, p is 0 and the score NaN.
        """
        point = z.detach().double().requires_grad_()
        x, logabsdet = self.coordinates.inverse(point)
        energies = self.potential(x)
        log_prob = logabsdet - energies
        score = torch.autograd.grad(log_prob.sum(), point)[0]
        whole = energies.detach() < self._top(energies)
        return log_prob.detach().where(whole, -math.inf), score.where(whole[..., None], math.nan).to(z.dtype)

    def _top(self, energies: Tensor) -> Tensor:
        """What broken energies are."""
        return regularised(energies.new_full((), math.inf), LINEAR, largest=LARGEST)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator | None = None) -> Samples:
        """Draw `count` samples; the flow computes in its own dtype, energies and volumes are in float64."""
        count = check_integer("count", count, 1)
        sizes = [min(BATCH, count - start) for start in range(0, count, BATCH)]
        return Samples.cat([self._draw(size, generator) for size in sizes])

    def _draw(self, count: int, generator: torch.Generator | None) -> Samples:
        z, log_prob = self.flow.sample_with_log_prob(count, generator=generator)
        z, log_prob = z.double(), log_prob.double()
        x, logabsdet = self.coordinates.inverse(z)
        energies = self.potential.unregularised(x)
        energies = energies.where(energies.isfinite(), math.inf)
        log_weights = -energies + logabsdet - log_prob
        usable = log_weights.isfinite() & ~self.coordinates.outside(z)
        return Samples(x.to(torch.float32), energies, log_prob, log_weights.where(usable, -math.inf))

    def extra_repr(self) -> str:
        return f"{self.system!r}, model={self.model!r}"
