"""One phase of a generator's training."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch.errors import P4Error
from p4torch.molecules.generator.molecular_flow import MolecularFlow
from p4torch.molecules.generator.schedule import Phase, Schedule
from p4torch.parametrize.sites import parameter_groups
from p4torch.training import ChunkedFit, FlatAdam

#: So many steps in a row without a usable gradient end a training.
PATIENCE = 100


class PhaseFit(ChunkedFit):
    """One phase: batches are latent points, then frames' coordinates. Gradients that are not finite are left out."""

    def __init__(self, generator: MolecularFlow, phase: Phase, schedule: Schedule, done: int = 0) -> None:
        super().__init__(generator.flow, phase.steps, phase.learning_rate, clip=schedule.clip, done=done)
        self.generator, self.phase, self.perturbation_rate = generator, phase, schedule.perturbation_rate
        self.left_out, self.in_a_row = 0, 0
        self.broken = torch.zeros((), dtype=torch.long)  # energies that were not finite

    def configure_optimizers(self) -> FlatAdam:
        return FlatAdam(parameter_groups(self.flow, share=self.perturbation_rate), lr=self.learning_rate)

    def loss(self, batch: Tensor) -> Tensor:
        latent, frames = batch.split([self.phase.samples, self.phase.frames])
        total = batch.new_zeros(())
        if len(frames):
            total = total - self.phase.likelihood * self.flow(frames).mean()
        if len(latent):
            loss, broken = (self.generator.force_loss if self.phase.forces else self.generator.energy_loss)(latent)
            self.broken += broken
            total = total + loss
        return total

    def usable(self, norm: Tensor) -> bool:
        if bool(norm.isfinite()):
            self.in_a_row = 0
            return True
        self.left_out += 1
        self.in_a_row += 1
        if self.in_a_row >= PATIENCE:
            raise P4Error(f"{PATIENCE} steps in a row had gradients that are not finite, up to step {self.done + 1}")
        return False
