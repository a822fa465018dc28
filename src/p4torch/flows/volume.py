"""Volume-preserving flows made of layers that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch._options import check_tensor
from p4torch.core.perturbation import property_name
from p4torch.core.transaction import Proposal
from p4torch.errors import ArgumentError
from p4torch.flows._context import mapped
from p4torch.flows.bijection import Bijection, Chain
from p4torch.flows.images import InvertibleConv1x1
from p4torch.flows.linear import InvertibleLinear
from p4torch.flows.mlp import InvertibleMLP
from p4torch.merging.joint import JointMerge
from p4torch.parametrize.lookup import perturbation_of
from p4torch.parametrize.sites import Site
from p4torch.properties import Invertible


class VolumePreserving(JointMerge, Bijection):
    """S = {flows f whose linear layers have Σ_i log|det W_i| = 0}: one factor for the whole network,

        z = f(x) e^(-t/n),   t = Σ_i log|det W_i|,

    makes it so for every B. Where all else in f preserves volume (additive couplings, swaps, rotations), the network
    does, while each layer stretches and the others make up for it.

    At merges all layers merge together, and the factor goes into the last one, W <- e^(-t/n) W and b <- e^(-t/n) b: the
    network computes what it computed before, and the sum of the bases' log-determinants is 0. If one is refused, none
    is merged.

    Args:
        model: a `Chain` that ends with an `InvertibleLinear` of the property `Invertible`.

    Raises:
        ArgumentError: for another model; one whose last layer takes a context, or has a weight that depends on one.
    """

    def __init__(self, model: Chain) -> None:
        super().__init__(model)
        last = model.bijections[-1] if isinstance(model, Chain) and len(model) else None
        expected = "a Chain that ends with an InvertibleLinear of the property Invertible"
        if not isinstance(last, InvertibleLinear):
            got = type(model).__name__ if last is None else f"one that ends with {type(last).__name__}"
            raise ArgumentError.of("model", expected, got)
        kind = perturbation_of(last, "weight")[0]
        if not isinstance(kind, Invertible):
            raise ArgumentError.of("model", expected, f"one of {property_name(kind)}")
        layers = [module for module in model.modules() if isinstance(module, InvertibleLinear)]
        if last.context_features or any(layer.context_rank for layer in layers):
            expected = "a Chain in which no `context` acts on the last layer, or on a W (`context_rank`)"
            raise ArgumentError.of("model", expected, "one in which it does")
        if any(isinstance(module, InvertibleConv1x1) for module in model.modules()):
            raise ArgumentError.of("model", "a Chain of layers of vectors", "one with an InvertibleConv1x1")
        self.features = last.features

    @property
    def last(self) -> InvertibleLinear:
        """The layer that takes the factor at merges."""
        return cast(InvertibleLinear, cast(Chain, self.model).bijections[-1])

    @property
    def context_features(self) -> int:  # type: ignore[override]
        """That of the model."""
        return cast(Chain, self.model).context_features

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, logabsdet = mapped(self.model, x, context)
        total = self.total()
        return z * (-total / self.features).exp(), logabsdet - total

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("z", z)
        total = self.total()
        x, logabsdet = mapped(self.model, z * (total / self.features).exp(), context, inverse=True)
        return x, logabsdet + total

    def total(self) -> Tensor:
        """t = Σ log|det W| of the linear layers, without the factor, `()`: 0 right after a merge."""
        layers = (module for module in self.model.modules() if isinstance(module, (InvertibleLinear, InvertibleMLP)))
        pairs = [perturbation_of(layer, "weight") for layer in layers]
        return torch.stack([perturbation.logabsdet(base).sum() for perturbation, base in pairs]).sum()

    def propose(self, sites: Sequence[Site]) -> list[Proposal]:
        proposals = super().propose(sites)
        (index,) = (index for index, site in enumerate(sites) if site.module is self.last)
        total = torch.stack([_logabsdet(*pair).sum() for pair in zip(sites, proposals, strict=True)]).sum()
        proposals[index] = self._folded(sites[index], proposals[index], (-total / self.features).exp())
        return proposals

    def unwrap(self) -> nn.Module:
        """The model, with the factor in its last layer."""
        factor = (-self.total() / self.features).exp()
        for value in self.last.parameters(recurse=False):
            value.mul_(factor)
        return self.model

    def _folded(self, site: Site, proposal: Proposal, factor: Tensor) -> Proposal:
        """The last layer's candidate times the factor, and what is tracked beside it."""
        tracked = cast(Invertible, site.perturbation).tracked
        values = {id(tensor): value for tensor, value in proposal.tracked}
        logabsdet = values[id(tracked.logabsdet)] + self.features * factor.log()
        others = [pair for pair in proposal.tracked if pair[0] is not tracked.logabsdet]
        if self.last.bias is not None:
            others.append((self.last.bias, self.last.bias * factor))
        if proposal.base is None:  # decided without being built
            write = proposal.write
            assert write is not None

            def scaled(where: Tensor) -> None:
                write(where)
                site.base.mul_(torch.where(where, factor, 1.0))
                tracked.inverse.div_(torch.where(where, factor, 1.0))

            return replace(proposal, tracked=[*others, (tracked.logabsdet, logabsdet)], write=scaled)
        exact = proposal.base.double() * factor
        rounded = exact.to(site.base.dtype)
        inverse = values[id(tracked.inverse)].double() / factor
        logabsdet = logabsdet + (inverse.mT * (rounded.double() - exact)).sum((-2, -1))
        others = [pair for pair in others if pair[0] is not tracked.inverse]
        return replace(
            proposal, base=rounded, tracked=[*others, (tracked.inverse, inverse), (tracked.logabsdet, logabsdet)]
        )


def _logabsdet(site: Site, proposal: Proposal) -> Tensor:
    """log|det| of a candidate, `(...)` in float64: as tracked, or computed."""
    if isinstance(site.perturbation, Invertible):
        return next(value for tensor, value in proposal.tracked if tensor is site.perturbation.tracked.logabsdet)
    assert proposal.base is not None
    return linalg.unbatched(torch.linalg.slogdet, proposal.base.double())[1]
