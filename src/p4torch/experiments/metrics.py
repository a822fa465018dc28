"""What is measured of a flow whose target density is known exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from p4torch.experiments.targets import Target
from p4torch.flows import Flow
from p4torch.sites import sites

#: A sample leaks where the true density is below this share of its maximum.
LEAK = 1e-3

_CHUNK = 20_000


@torch.no_grad()
def log_prob(flow: Flow, points: Tensor) -> Tensor:
    """log q `(m,)` in float64."""
    return torch.cat([flow.log_prob(chunk).double() for chunk in points.split(_CHUNK)])


def kl_divergence(flow: Flow, points: Tensor, log_density: Tensor) -> float:
    """KL(p‖q) in nats: the mean of log p − log q over points of p. Infinite if log q is not finite somewhere."""
    return _finite_or_inf((log_density - log_prob(flow, points)).mean())


def leakage(target: Target, log_density: Tensor) -> float:
    """The share of points, given by their exact log p, in places where p < 1e-3 max p. Points that are not finite
    leak, too."""
    inside = log_density >= target.max_log_density + math.log(LEAK)
    return float((~inside).double().mean())


@torch.no_grad()
def round_trip(flow: Flow, samples: Tensor) -> float:
    """max |x − f⁻¹(f(x))| over the flow's own samples."""
    back = flow.bijection.inverse(flow.bijection(samples)[0])[0]
    return _finite_or_inf((back - samples).abs().max())


@torch.no_grad()
def inverse_residual(flow: Flow) -> float:
    """max |W W⁻¹ − I| over all perturbed matrices, with the inverses that the flow uses; 0 without any."""
    worst = 0.0
    for site in sites(flow):
        weight = site.perturbation(site.base)
        product = weight @ site.perturbation.inverse(site.base)
        eye = torch.eye(weight.shape[-1], dtype=weight.dtype)
        worst = max(worst, _finite_or_inf((product - eye).abs().max()))
    return worst


@torch.no_grad()
def logabsdet_error(flow: Flow) -> float:
    """|Σ log|det W| tracked − computed afresh in float64|: what a KL could be wrong by. 0 without perturbations."""
    return sum(
        abs(float(site.perturbation.logabsdet(site.base).double().sum() - _exact(site.perturbation(site.base))))
        for site in sites(flow)
    )


def _finite_or_inf(value: Tensor) -> float:
    return float(value) if bool(value.isfinite()) else math.inf


def _exact(weight: Tensor) -> Tensor:
    return torch.linalg.slogdet(weight.double())[1].sum()
