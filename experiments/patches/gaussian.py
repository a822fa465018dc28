"""The baseline of all: one Gaussian with a full covariance."""

from __future__ import annotations

import torch

from experiments.patches.data import patches
from p4torch.parametrize.sites import counter_based_generator

_POINTS = 200_000


def gaussian_nats(split: str) -> float:
    """Its mean log-likelihood on "validation" or "test", in nats a patch, with the training data's moments."""
    data = patches()
    generator = counter_based_generator(0, "patches/gaussian", 0)
    chosen = torch.randint(len(data.training), (_POINTS,), generator=generator)
    points = data.points(data.training[chosen], generator).double()
    law = torch.distributions.MultivariateNormal(points.mean(0), points.mT.cov())
    return float(law.log_prob(data.held_out(split).flatten(0, 1).double()).mean()) + data.unit
