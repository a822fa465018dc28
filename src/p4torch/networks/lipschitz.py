"""Networks with a bounded Lipschitz constant, of which each layer has a share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from p4torch._options import check_number
from p4torch.core.identity import Identified
from p4torch.core.transaction import Proposal
from p4torch.errors import ArgumentError, ProjectionWarning, warn
from p4torch.merging.joint import JointMerge
from p4torch.networks.structure import Weighted, read
from p4torch.parametrize.sites import Site, perturb
from p4torch.parametrize.targets import plain_parameter
from p4torch.properties import SpectralBound
from p4torch.properties._math.norms import norm_bound, rounding_share
from p4torch.properties._math.shapes import check_real_matrix

#: The start is brought to this share below the bound, so that rounding does not lead above it.
ROOM = 1e-6


class LipschitzNetwork(JointMerge, Identified):
    """S = {networks with Π_i ‖A_i‖₂ · κ <= c}, κ the constants of what has no weights: |f(x) - f(y)| <= c |x - y|, at
    every step.

        network = p4.LipschitzNetwork(nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1)), bound=1.0)

    Each layer is perturbed by a `SpectralBound` with a share of c: shares are in the ratios of the norms, and their
    product with κ is c. A step that would lead a layer above its share is scaled back (see there), so the bound is
    certified at every step, by norms from above. At merges, where all layers merge together and keep their weights,
    what some do not use of their shares is distributed anew. A residual branch counts as α + L(branch), see `Residual`.

    With `at="merge"` a step costs nothing, and the bound holds after merges only. Layers then take any norms s_i; if
    these are above c together, all limits are t s_i, with t such that the bound holds, and the singular values of each
    layer are cut there ("clip"), or the layer is divided ("scale"). `p4.finalize` leaves what the network computes
    now: call `p4.merge` first, or be warned where that is above c.

    Biases train as ever. A weight that is assigned, or comes from a checkpoint of a plain model, has to keep to its
    layer's present share.

    Args:
        model: an `nn.Sequential` (of `nn.Sequential`s and `Residual`s) of `nn.Linear`, convolutions with zero padding
            and without groups, and layers whose constant is known, see `p4torch.networks.constants`: ReLU, Tanh,
            Softplus, GELU, Softmax, Flatten, average and maximum pooling, ... A convolution's norm is at most √p times
            that of its kernel as a matrix `(out, rest)`, where every entry of the input is in p patches at most: all
            positions of the kernel at stride 1, a single one where patches do not overlap.
        bound: c > 0. A network above it is scaled down, all layers by the same factor, with a warning.
        rank, options: of `SpectralBound`.
        at: "step" or "merge": where the bound holds.
        method: "clip" or "scale", for `at="merge"`.

    Raises:
        ArgumentError: a layer whose constant is not known, or a weight that is not finite, by name; one layer or weight
            twice; no layer with weights; a bound that the skips alone exceed; an option out of range. The model is as
            it was, then.

    Source: Gouk, Frank, Pfahringer and Cree (2021), regularisation of neural networks by enforcing Lipschitz
    continuity, for the product bound.
    """

    bound: Tensor

    def __init__(
        self,
        model: nn.Module,
        bound: float,
        rank: int | Literal["whole"] | None = None,
        *,
        at: Literal["step", "merge"] = "step",
        method: Literal["clip", "scale"] = "clip",
        **options: Any,
    ) -> None:
        super().__init__(model)
        bound = check_number("bound", bound, 1e-30)
        layers, self.chain = read(model)
        self.at = at
        least = self.chain.value([0.0] * len(layers))
        if least >= bound:
            raise ArgumentError.of("bound", f"above {least:g}, the constant of the skips alone", bound)
        self.register_buffer("bound", torch.tensor(float(bound), dtype=torch.float64))
        options = {"rank": rank, "at": at, "method": method, **options}
        perturbations = [_perturbation(path, layer, **options) for path, layer in layers.items()]
        norms = [float(perturbation.certificate.norm) for perturbation in perturbations]
        if self.chain.value(norms) > bound:
            norms = self._scale(list(layers.values()), norms)
        for layer, perturbation, share in zip(layers.values(), perturbations, self._shares(norms), strict=True):
            perturbation.certificate.bound.fill_(share)
            perturbation.bound = None  # a share is a part of the state
            perturb(layer, "weight", partial(_given, perturbation), view="matrix")

    @property
    def constant(self) -> float:
        """κ, of the layers without weights; those in branches count there."""
        return self.chain.constant

    def _shares(self, norms: Sequence[float]) -> list[float]:
        return self.chain.shares(norms, float(self.bound))

    @torch.no_grad()
    def _scale(self, layers: Sequence[Weighted], norms: Sequence[float]) -> list[float]:
        """Bring the start inside, by one factor for all layers. Their norms then."""
        room = max(ROOM, *(rounding_share(_matrix(layer)) for layer in layers))
        factor = self.chain.factor(norms, float(self.bound)) / (1 + room)
        warn(
            f"`model` has a certified Lipschitz constant of {self.chain.value(norms):.3g}, above "
            f"`bound` = {float(self.bound):g}: each of its {len(layers)} layers is multiplied by {factor:.3g}",
            ProjectionWarning,
        )
        for layer in layers:
            layer.weight.mul_(factor)
        return [float(norm_bound(_matrix(layer))) for layer in layers]

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        """A certified upper bound of the network's constant as it computes now, `()`. At most `bound`; with
        `at="merge"` right after a merge."""
        norms = [cast(SpectralBound, site.perturbation).norm(site.base) for site in self.sites()]
        return cast(Tensor, self.chain.value(norms))

    @torch.no_grad()
    def defect(self) -> Tensor:
        """max(0, L / c - 1) of the bases, certified, `()`."""
        constant = self.chain.value([norm_bound(site.base) for site in self.sites()])
        return cast(Tensor, (constant / self.bound - 1).clamp_min(0))

    def propose(self, sites: Sequence[Site]) -> list[Proposal]:
        perturbations = [cast(SpectralBound, site.perturbation) for site in sites]
        bases = [site.base for site in sites]
        if self.at == "step":
            limited = [perturbation.scaled(base) for perturbation, base in zip(perturbations, bases, strict=True)]
        else:
            limited = self._limited(perturbations, bases)
        shares = self._shares([float(norm) for _, norm in limited])
        certificates = [perturbation.certificate for perturbation in perturbations]
        return [
            Proposal(base, [(certificate.norm, norm), (certificate.bound, torch.full_like(certificate.bound, share))])
            for certificate, (base, norm), share in zip(certificates, limited, shares, strict=True)
        ]

    def _limited(self, perturbations: Sequence[SpectralBound], bases: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The candidates of `at="merge"`, cut or divided where they exceed c together, and their norms."""
        candidates = [perturbation.loose(base) for perturbation, base in zip(perturbations, bases, strict=True)]
        norms = [norm for _, norm in candidates]
        if not self.chain.value(norms) <= self.bound:
            norms = [norm_bound(exact.to(base.dtype)) for (exact, _), base in zip(candidates, bases, strict=True)]
        t = min(1.0, self.chain.factor([float(norm) for norm in norms], float(self.bound)))
        return [
            perturbation.certificate.bring_inside(exact, base.dtype, norm, perturbation.method == "clip", t * norm)
            for perturbation, base, (exact, _), norm in zip(perturbations, bases, candidates, norms, strict=True)
        ]

    def unwrap(self) -> nn.Module:
        layers, chain = read(self.model)
        now = chain.value([norm_bound(_matrix(layer)) for layer in layers.values()])
        if bool(now > self.bound * (1 + ROOM)):
            warn(
                f"the finalized model has a certified Lipschitz constant of {float(now):.3g}, above `bound` = "
                f"{float(self.bound):g}: `p4.merge` before `p4.finalize` brings it inside",
                ProjectionWarning,
            )
        return self.model

    def identity(self) -> str:
        return f"LipschitzNetwork(bound={float(self.bound):g}, at={self.at!r})"

    def extra_repr(self) -> str:
        return f"bound={float(self.bound):g}, constant={self.constant:g}, at={self.at!r}"


def _perturbation(path: str, layer: Weighted, **options: Any) -> SpectralBound:
    """The perturbation of one layer, before its share is known."""
    try:
        check_real_matrix(plain_parameter(layer, "weight"))
    except ArgumentError as error:
        raise ArgumentError.of("model", "of layers that can be perturbed", f"{path or 'itself'}: {error}") from error
    return SpectralBound(_matrix(layer), bound=1.0, **options)


def _given(perturbation: SpectralBound, base: Tensor) -> SpectralBound:
    return perturbation


def _matrix(layer: Weighted) -> Tensor:
    return layer.weight.detach().flatten(1)
