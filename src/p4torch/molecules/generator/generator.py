"""Boltzmann generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p4torch.molecules.analysis.free_energy import POSITIVE_PHI, FreeEnergyDifference, free_energy_difference
from p4torch.molecules.analysis.torsions import Arc, torsion_angles
from p4torch.molecules.generator import mcmc
from p4torch.molecules.generator.architectures import architecture, default_zmatrix, seeded
from p4torch.molecules.generator.molecular_flow import MolecularFlow
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.generator.schedule import Phase
from p4torch.molecules.generator.training import Training, train
from p4torch.molecules.mixed import MixedCoordinates
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.torsion_names import default_torsions
from p4torch.molecules.trajectory import check_frames
from p4torch.molecules.zmatrix import ZMatrix

#: Frames that set means, scales and cuts of the coordinates; a stride is taken of more.
FIT_FRAMES = 100_000


class BoltzmannGenerator(MolecularFlow):
    """A `MolecularFlow` with its training, its Markov chains and its files.

        system = MolecularSystem.alanine_dipeptide()
        data = ReferenceData.load("runs/molecule", system=system)
        generator = BoltzmannGenerator.create(system, data.frames, data.weights)
        generator.fit_likelihood(data.frames, data.weights, steps=10_000)
        generator.fit_forces(data.frames, data.weights, steps=1_000)
        samples = generator.sample(10_000)
        samples.frames, samples.weights

    Source: Noé, Olsson, Köhler and Wu, Science 365 (2019) eaaw1147.
    """

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

    sample_mcmc = mcmc.sample_mcmc

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
            options: of `Schedule`: merge_every, perturbation_rate, clip, seed; of `Training`: out, resume, report.

        Returns:
            the training, with its log.
        """
        return train(self, Phase(steps, batch, 0, learning_rate), frames, weights, **options)

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
        phase = Phase(steps, batch if frames is not None else 0, samples, learning_rate, likelihood, forces=True)
        return train(self, phase, frames, weights, **options)

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
        phase = Phase(steps, batch if frames is not None else 0, samples, learning_rate, likelihood)
        return train(self, phase, frames, weights, **options)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Write all that `load` needs but the molecule, as safetensors. Raises ArgumentError where it cannot."""
        from p4torch.molecules.generator.files import save_generator  # safetensors comes with another extra

        save_generator(self, Path(path))

    @classmethod
    def load(cls, path: Path | str, system: MolecularSystem) -> BoltzmannGenerator:
        """Read what `save` wrote.

        Raises:
            CheckpointError: not such a file; one of another molecule, force field or temperature.
        """
        from p4torch.molecules.generator.files import load_parts

        return cls(system, *load_parts(Path(path), system))
