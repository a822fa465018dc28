"""Averages of a model over its training: EMA and SWA, of weights that keep their property."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch._options import check_number
from p4torch.errors import ArgumentError, CheckpointError, ProjectionWarning
from p4torch.parametrize.sites import finalize, sites
from p4torch.parametrize.state_dict import inwards
from p4torch.parametrize.targets import chain_of, joined, paths


class WeightAverage:
    """Running means of what a model computes with, W = R_B(A) for a perturbed tensor, over its training:

        m <- d m + (1 - d) W        with a `decay` d: an exponential moving average (EMA)
        m <- m + (W - m) / t        without, at update t: stochastic weight averaging (SWA)

    The first update sets m to W. `finalized()` is a plain model with the means in it, those of perturbed tensors
    projected onto S. (Means of A and of B, each by itself, as `torch.optim.swa_utils.AveragedModel` takes them, are no
    elements of S, and what is tracked beside A does not follow.) An update forms each perturbed tensor once.

    Args:
        model: perturbed or not; data-parallel wrappers and `torch.compile` are looked through.
        decay: 0 <= d < 1, or None.

    Raises:
        ArgumentError: for something else.

    Source: Izmailov et al. (2018), averaging weights leads to wider optima; Polyak and Juditsky (1992).

    Example:
        >>> import torch, p4torch as p4
        >>> from p4torch.training import WeightAverage
        >>> model = p4.perturb(torch.nn.Linear(3, 3), "weight", p4.Orthogonal)
        >>> average = WeightAverage(model, decay=0.999)
        >>> average.update()  # after each optimizer step
        >>> average.finalized()
        Linear(in_features=3, out_features=3, bias=True)
    """

    def __init__(self, model: nn.Module, decay: float | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError.of("model", "an nn.Module", type(model).__name__)
        if decay is not None and check_number("decay", decay, 0.0, "None or a number from 0 to below 1") >= 1:
            raise ArgumentError.of("decay", "None or a number from 0 to below 1", repr(decay))
        self.model = [module for path, module in paths(model) if not path][-1]
        self.decay = decay
        self.count = 0
        self.means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the means."""
        self.count += 1
        for name, value in _effective(self.model).items():
            mean = self.means.get(name)
            if mean is None:
                self.means[name] = _at_least_single(value).clone()
            else:
                mean.lerp_(value.to(mean.dtype), 1 / self.count if self.decay is None else 1 - self.decay)

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """A finalized copy of the model with the means in it, projected onto S where they left it. Buffers are the
        model's own, as they are now: `torch.optim.swa_utils.update_bn` adapts those of batch normalization.

        Raises:
            ArgumentError: before the first update; for a mean that cannot be projected: a singular one, or any one
                of a `FixedSpectrum`.
        """
        if not self.means:
            raise ArgumentError.of("count", "at least 1: call update() first", self.count)
        model = copy.deepcopy(self.model)
        for name, value in _plain(model).items():
            value.copy_(self.means[name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProjectionWarning)  # that is what is asked for
            for site in sites(model):
                mean = inwards(chain_of(site.module, site.tensor_name), self.means[site.name], site.name)
                nearest = site.perturbation.nearest(mean.to(site.base.dtype))
                site.base.copy_(site.perturbation.right_inverse(nearest))
        return finalize(model)

    def state_dict(self) -> dict[str, Any]:
        """The means by the names of tensors in the plain model, and how many updates they are of."""
        return {"count": self.count, "decay": self.decay, "means": {name: m.clone() for name, m in self.means.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises CheckpointError, and changes nothing, if the tensors differ."""
        missing = [key for key in ("count", "decay", "means") if not isinstance(state, dict) or key not in state]
        if missing:
            raise CheckpointError(f"`state` must be of a WeightAverage, but lacks {', '.join(missing)}")
        own, means = _effective(self.model), state["means"]
        for name in own.keys() | means.keys() if means else ():
            expected, got = (tuple(part[name].shape) if name in part else None for part in (own, means))
            if expected != got:
                raise CheckpointError(f"`means` must have `{name}` of shape {expected}, got {got}")
        if state["decay"] != self.decay:
            raise CheckpointError(f"`decay` must be {self.decay}, got {state['decay']}")
        self.count = state["count"]
        self.means = {name: means[name].to(value.device, copy=True) for name, value in own.items() if means}


def _effective(model: nn.Module) -> dict[str, Tensor]:
    """What a model computes with, by names in the plain model."""
    perturbed = dict[str, Tensor]()
    for site in sites(model):
        with linalg.full_precision(site.base.device):
            perturbed[site.name] = getattr(site.module, site.tensor_name)
    return {**_plain(model), **perturbed}


def _plain(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that no perturbation has a part in."""
    chains = [chain_of(site.module, site.tensor_name) for site in sites(model)]
    inside = {id(part) for chain in chains for part in chain.modules()}
    return {
        joined(path, name): value
        for path, module in paths(model)
        if id(module) not in inside
        for name, value in module.named_parameters(recurse=False)
    }


def _at_least_single(value: Tensor) -> Tensor:
    return linalg.at_least_single(value) if value.is_floating_point() or value.is_complex() else value
