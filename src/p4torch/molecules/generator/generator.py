"""Boltzmann generators."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from p4torch._options import check_integer, check_tensor
from p4torch.errors import ArgumentError
from p4torch.flows import Flow, path_loss
from p4torch.molecules.analysis.free_energy import POSITIVE_PHI, FreeEnergyDifference, free_energy_difference
from p4torch.molecules.analysis.torsions import Arc, torsion_angles
from p4torch.molecules.generator.architectures import architecture
from p4torch.molecules.generator.protocol import Protocol, Stage
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.mixed import MixedCoordinates
from p4torch.molecules.regularised import RegularisedEnergy, regularised
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.torsion_names import default_torsions
from p4torch.molecules.trajectory import check_frames
from p4torch.molecules.zmatrix import ZMatrix

if TYPE_CHECKING:
    from p4torch.molecules.generator.chains import Chains
    from p4torch.molecules.generator.langevin import Langevin
    from p4torch.molecules.generator.training import Training

#: Energies of training are linear up to so many kT, and logarithmic above; a clash has 1e10 and more.
LINEAR, LARGEST = 1e3, 1e20
#: Of what a point adds to a path gradient, per coordinate: a point of a good flow has 1. Without one, a flow of 12
#: couplings was lost within 100 steps.
BOUND = 2.0
#: Samples that are drawn together: bounds the memory.
BATCH = 8192
#: Frames that set means, scales and cuts of the coordinates; a stride is taken of more.
FIT_FRAMES = 100_000


class BoltzmannGenerator(nn.Module):
    """A flow between a latent distribution and the configurations of a molecule, through `MixedCoordinates`.

        system = MolecularSystem.alanine_dipeptide()
        data = ReferenceData.load("runs/molecule", system=system)
        generator = BoltzmannGenerator.create(system, data.frames, data.weights)
        generator.fit_likelihood(data.frames, data.weights, steps=10_000)
        generator.fit_forces(data.frames, data.weights, steps=1_000)
        samples = generator.sample(10_000)
        samples.frames, samples.weights

    With z the coordinates, q the flow's density of them and x their configuration in standard position,
    the target is p(z) ∝ exp(-u(x)) |det ∂x/∂z|, u = U / kT. Samples z ~ q have log w = -u(x) + log|det| - log q(z).

    Args:
        system: the molecule, its physics and its temperature.
        coordinates: of its frames.
        flow: over the coordinates.
        model: the architecture's name, for files.

    Source: Noé, Olsson, Köhler and Wu, Science 365 (2019) eaaw1147.
    """

    def __init__(self, system: MolecularSystem, coordinates: MixedCoordinates, flow: Flow, model: str = "") -> None:
        super().__init__()
        if coordinates.layout.size != 3 * system.atoms - 6:
            raise ArgumentError.of("coordinates", f"of {system.atoms} atoms", f"{coordinates.layout.size} coordinates")
        self.system, self.model = system, model
        self.coordinates, self.flow = coordinates, flow
        self.potential = RegularisedEnergy(_Reduced(system), LINEAR, largest=LARGEST)

    @classmethod
    def create(
        cls,
        system: MolecularSystem,
        frames: Tensor,
        weights: Tensor | None = None,
        model: str = "spline-p4inv",
        *,
        zmatrix: ZMatrix | None = None,
        seed: int = 0,
    ) -> BoltzmannGenerator:
        """A new one, untrained.

        Args:
            system: the molecule.
            frames: `(frames, atoms, 3)` in nm, that set means, scales and cuts of the coordinates.
            weights: of the frames.
            model: see `architecture`.
            zmatrix: the published one for alanine dipeptide, else one made from the bonds.
            seed: of the flow's parameters.

        Raises:
            ArgumentError: an unknown model; frames that do not fit.
        """
        kind = architecture(model)
        check_frames(frames, system)
        stride = max(1, len(frames) // FIT_FRAMES)
        chosen = None if weights is None else weights[::stride]
        coordinates = MixedCoordinates(
            zmatrix or default_zmatrix(system), frames[::stride], chosen, torsions=kind.torsions
        )
        return cls(system, coordinates, seeded(lambda: kind.build(coordinates.layout), seed), model)

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
        z, log_prob = self.flow.sample_with_log_prob(count, generator)
        z, log_prob = z.double(), log_prob.double()
        x, logabsdet = self.coordinates.inverse(z)
        energies = self.potential.unregularised(x)
        energies = energies.where(energies.isfinite(), math.inf)
        log_weights = -energies + logabsdet - log_prob
        usable = log_weights.isfinite() & ~self.coordinates.outside(z)
        return Samples(x.to(torch.float32), energies, log_prob, log_weights.where(usable, -math.inf))

    def sample_mcmc(
        self,
        steps: int,
        chains: int = 16,
        *,
        local: Langevin | None = None,
        start: Tensor | None = None,
        discard: int = 0,
        seed: int = 0,
    ) -> Chains:
        """Frames without weights, from Markov chains whose proposals are samples: see `mcmc.sample_mcmc`."""
        from p4torch.molecules.generator.mcmc import sample_mcmc

        return sample_mcmc(self, steps, chains, local=local, start=start, discard=discard, seed=seed)

    def free_energy_difference(
        self, samples: Samples, torsion: tuple[int, int, int, int] | None = None, region: Arc = POSITIVE_PHI
    ) -> FreeEnergyDifference:
        """ΔF in kT of a region of a torsion against the rest, from samples and their weights; see
        `analysis.free_energy_difference`. By default of 0 < φ < 2.4, or of the first rotatable bond."""
        atoms = torsion or default_torsions(self.system.topology)[0]
        theta = torsion_angles(samples.frames, torch.tensor([atoms]))[:, 0]
        return free_energy_difference(theta, region, weights=samples.weights)

    # --- training ---------------------------------------------------------------------------------------------------

    def fit_likelihood(
        self,
        frames: Tensor,
        weights: Tensor | None = None,
        *,
        steps: int = 10_000,
        batch: int = 256,
        learning_rate: float = 1e-3,
        **options: Any,
    ) -> Training:
        """Train on frames `(frames, atoms, 3)`: the mean of -log q over the Boltzmann distribution.

        Args:
            frames: in nm, with their weights.
            steps: of Adam; `batch` frames each; learning_rate at its top, then along a cosine to 0.
            options: of `Protocol`: merge_every, perturbation_rate, clip, seed; of `Training`: out, resume, report.

        Returns:
            the training, with its log.
        """
        return self._train(Stage(steps, batch, 0, learning_rate), frames, weights, options)

    def fit_forces(
        self,
        frames: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        steps: int = 1_000,
        samples: int = 256,
        batch: int = 256,
        learning_rate: float = 1e-4,
        likelihood: float = 0.1,
        **options: Any,
    ) -> Training:
        """Train on the forces at `samples` samples a step, otherwise as `fit_likelihood`: the mean of -log q over them,
        with their weights. Its gradient has less noise than that of frames, and none where the flow is right (see
        `p4torch.flows.path_loss`): training goes on where likelihood no longer helps, or where there are few frames.

        With frames, `likelihood` · (-log q) of `batch` of them, which keeps up what samples rarely see: while weights
        are poor, samples alone lose modes. Frames do not get a path gradient of their own: where the flow has little
        density at one, it is large and wild, and flows were lost after some thousand steps.
        """
        stage = Stage(steps, batch if frames is not None else 0, samples, learning_rate, likelihood, forces=True)
        return self._train(stage, frames, weights, options)

    def fit_energy(
        self,
        frames: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        steps: int = 500,
        samples: int = 1024,
        batch: int = 256,
        learning_rate: float = 1e-4,
        likelihood: float = 1.0,
        **options: Any,
    ) -> Training:
        """Train on energies: KL(q‖p) of `samples` samples a step, and with frames `likelihood` · (-log q) of `batch`
        of them, which keeps the flow from losing modes. Otherwise as `fit_likelihood`."""
        stage = Stage(steps, batch if frames is not None else 0, samples, learning_rate, likelihood)
        return self._train(stage, frames, weights, options)

    def _train(self, stage: Stage, frames: Tensor | None, weights: Tensor | None, options: dict[str, Any]) -> Training:
        from p4torch.molecules.generator.encoded import Encoded
        from p4torch.molecules.generator.training import Training

        if frames is not None:
            check_frames(frames, self.system)
        own = {
            name: options.pop(name) for name in ("merge_every", "perturbation_rate", "clip", "seed") if name in options
        }
        data = None if frames is None else Encoded(self.coordinates, frames, weights)
        training = Training(self, data, Protocol((stage,), **own), **options)
        training.fit()
        return training

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Write all that `load` needs but the molecule, as safetensors. Raises ArgumentError where it cannot."""
        from p4torch.molecules.generator.files import save_generator

        save_generator(self, Path(path))

    @classmethod
    def load(cls, path: Path | str, system: MolecularSystem) -> BoltzmannGenerator:
        """Read what `save` wrote.

        Raises:
            CheckpointError: not such a file; one of another molecule, force field or temperature.
        """
        from p4torch.molecules.generator.files import load_generator

        return load_generator(Path(path), system)

    def extra_repr(self) -> str:
        return f"{self.system!r}, model={self.model!r}"


class _Reduced:
    """u(x) of a system."""

    def __init__(self, system: MolecularSystem) -> None:
        self.system = system

    def __call__(self, x: Tensor) -> Tensor:
        return self.system.energy(x)


def default_zmatrix(system: MolecularSystem) -> ZMatrix:
    """The published one for alanine dipeptide in Amber's order of atoms, else one made from the bonds."""
    published = ZMatrix.alanine_dipeptide()
    names = tuple(f"{atom.residue.name}{atom.residue.index + 1}-{atom.name}" for atom in system.topology.atoms())
    return published if names == published.names else ZMatrix.from_topology(system.topology)


def seeded(build: Callable[[], Flow], seed: int) -> Flow:
    """Build something that draws from torch's global generator, and leave that as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
