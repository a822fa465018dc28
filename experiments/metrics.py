"""What is measured of a flow whose target density is known exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from experiments.targets import Target
from p4torch.flows import Flow
from p4torch.training.measures import finite_or_inf

#: A sample leaks where the true density is below this share of its maximum.
LEAK = 1e-3

_CHUNK = 20_000


@torch.no_grad()
def log_prob(flow: Flow, points: Tensor) -> Tensor:
    """log q `(m,)` in float64."""
    return torch.cat([flow.log_prob(chunk).double() for chunk in points.split(_CHUNK)])


def kl_divergence(flow: Flow, points: Tensor, log_density: Tensor) -> float:
    """KL(p‖q) in nats: the mean of log p − log q over points of p. Infinite if log q is not finite somewhere."""
    return finite_or_inf((log_density - log_prob(flow, points)).mean())


def leakage(target: Target, log_density: Tensor) -> float:
    """The share of points, given by their exact log p, in places where p < 1e-3 max p. Points that are not finite
    leak, too."""
    inside = log_density >= target.max_log_density + math.log(LEAK)
    return float((~inside).double().mean())


@torch.no_grad()
def round_trip(flow: Flow, samples: Tensor) -> float:
    """max |x − f⁻¹(f(x))| over the flow's own samples."""
    back = flow.bijection.inverse(flow.bijection(samples)[0])[0]
    return finite_or_inf((back - samples).abs().max())
