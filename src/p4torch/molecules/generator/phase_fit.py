"""One phase of a generator's training."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch.errors import P4Error
from p4torch.molecules.generator.molecular_flow import MolecularFlow
from p4torch.molecules.generator.schedule import Schedule
from p4torch.parametrize.sites import parameter_groups, sites
from p4torch.training import Fit

#: So many steps in a row without a usable gradient end a training.
PATIENCE = 100


class PhaseFit(Fit):
    """One phase: batches are latent points, then frames' coordinates. Gradients that are not finite are left out."""

    def __init__(self, generator: MolecularFlow, schedule: Schedule, index: int, done: int = 0) -> None:
        self.generator, self.phase = generator, schedule.phases[index]
        groups = parameter_groups(generator.flow, share=schedule.perturbation_rate)
        steps, rate = self.phase.steps, self.phase.learning_rate
        super().__init__(generator.flow, steps, rate, clip=schedule.clip, done=done, groups=groups)
        if any(sites(generator.flow)):  # directions of another phase are others
            self.merge(schedule.merge_every, generator, seed=schedule.seed + 1000 * index)
        self.left_out, self.in_a_row = 0, 0
        self.broken = torch.zeros((), dtype=torch.long)  # energies that were not finite

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
