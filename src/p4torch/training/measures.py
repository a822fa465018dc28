"""What is measured of perturbed models, whatever they are for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from p4torch.parametrize.sites import sites


def parameter_count(model: nn.Module) -> int:
    """What the optimizer may tune."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


@torch.no_grad()
def inverse_residual(model: nn.Module) -> float:
    """max |W W⁻¹ − I| over all perturbed matrices, with the inverses that the flow uses; 0 without any."""
    worst = 0.0
    for site in sites(model):
        weight = site.perturbation(site.base)
        product = weight @ site.perturbation.inverse(site.base)
        eye = torch.eye(weight.shape[-1], dtype=weight.dtype)
        worst = max(worst, finite_or_inf((product - eye).abs().max()))
    return worst


@torch.no_grad()
def logabsdet_error(model: nn.Module) -> float:
    """|Σ log|det W| tracked − computed afresh in float64|: what a KL could be wrong by. 0 without perturbations."""
    return sum(
        abs(float(site.perturbation.logabsdet(site.base).double().sum() - _exact(site.perturbation(site.base))))
        for site in sites(model)
    )


def finite_or_inf(value: Tensor) -> float:
    """A number, or ∞ instead of one that is not."""
    return float(value) if bool(value.isfinite()) else math.inf


def _exact(weight: Tensor) -> Tensor:
    return torch.linalg.slogdet(weight.double())[1].sum()
