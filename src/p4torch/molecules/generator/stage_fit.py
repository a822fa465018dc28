"""One stage of a generator's training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from p4torch.errors import P4Error
from p4torch.flows import path_loss
from p4torch.molecules.generator.protocol import Protocol, Stage
from p4torch.sites import parameter_groups
from p4torch.training import ChunkedFit, FlatAdam

if TYPE_CHECKING:
    from p4torch.molecules.generator.generator import BoltzmannGenerator

#: So many steps in a row without a usable gradient end a training.
PATIENCE = 100
#: Of what a point adds to a path gradient, per coordinate: a point of a good flow has 1. Without one, flows of 12
#: couplings were lost within 100 steps.
BOUND = 2.0


class StageFit(ChunkedFit):
    """One stage: batches are latent points, then frames' coordinates. Gradients that are not finite are left out."""

    def __init__(self, generator: BoltzmannGenerator, stage: Stage, protocol: Protocol, done: int = 0) -> None:
        super().__init__(generator.flow, stage.steps, stage.learning_rate, clip=protocol.clip, done=done)
        self.generator, self.stage, self.perturbation_rate = generator, stage, protocol.perturbation_rate
        self.left_out, self.in_a_row = 0, 0
        self.broken = torch.zeros((), dtype=torch.long)  # energies that were not finite

    def configure_optimizers(self) -> FlatAdam:
        return FlatAdam(parameter_groups(self.flow, share=self.perturbation_rate), lr=self.learning_rate)

    def loss(self, batch: Tensor) -> Tensor:
        latent, frames = batch.split([self.stage.samples, self.stage.frames])
        if self.stage.forces:
            return self._by_forces(latent, frames)
        total = batch.new_zeros(())
        if len(frames):
            total = total - self.stage.likelihood * self.flow(frames).mean()
        if len(latent):
            reverse, broken = self.generator.energy_loss(latent)
            self.broken += broken
            total = total + reverse
        return total

    def _by_forces(self, latent: Tensor, frames: Tensor) -> Tensor:
        """Frames count `likelihood` times as much as samples, whose weights add up to one."""
        flow = self.generator.flow
        with torch.no_grad():
            drawn, logabsdet = flow.bijection.inverse(latent)
            log_prob = flow.base.log_prob(latent) - logabsdet
        points = torch.cat([drawn, frames])
        log_target, score = self.generator.target(points)
        self.broken += score.isnan().any(-1).sum()
        log_weights = log_target[: len(latent)] - log_prob
        log_weights = log_weights.where(~self.generator.coordinates.outside(drawn), -math.inf)
        equal = frames.new_full((len(frames),), self.stage.likelihood / max(1, len(frames)))
        weights = torch.cat([log_weights.softmax(0).to(equal), equal])
        return path_loss(flow, points, score, weights, bound=BOUND * math.sqrt(points.shape[-1]))

    def usable(self, norm: Tensor) -> bool:
        if bool(norm.isfinite()):
            self.in_a_row = 0
            return True
        self.left_out += 1
        self.in_a_row += 1
        if self.in_a_row >= PATIENCE:
            raise P4Error(f"{PATIENCE} steps in a row had gradients that are not finite, up to step {self.done + 1}")
        return False
