"""Networks with a bounded Lipschitz constant, of which each layer has a share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from p4torch._options import check_number
from p4torch.core.identity import Identified
from p4torch.core.options import check_options
from p4torch.core.transaction import Proposal
from p4torch.errors import ArgumentError, ProjectionWarning, warn
from p4torch.merging.joint import JointMerge
from p4torch.networks.structure import Weighted, image_sizes, read
from p4torch.parametrize.sites import Site, perturb
from p4torch.parametrize.targets import plain_parameter
from p4torch.properties import ConvolutionBound, SpectralBound
from p4torch.properties._math.kernels import layer_options
from p4torch.properties._math.shapes import check_real_matrix

Bounded = SpectralBound | ConvolutionBound

#: The start is brought to this share below the bound, so that rounding does not lead above it.
ROOM = 1e-6


class LipschitzNetwork(JointMerge, Identified):
    """S = {networks with Π_i ‖A_i‖₂ · κ <= c}, κ the constants of what has no weights: |f(x) - f(y)| <= c |x - y|, at
    every step.

        network = p4.LipschitzNetwork(nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1)), bound=1.0)

    Each layer is perturbed by a `SpectralBound`, or a `ConvolutionBound`, with a share of c: shares are in the ratios
    of the norms, and their product with κ is c. A step that would lead a layer above its share is scaled back (see
    there), so the bound is certified at every step, by norms from above. At merges, where all layers merge together and
    keep their weights, what some do not use of their shares is distributed anew. A residual branch counts as
    α + L(branch), see `Residual`.

    With `at="merge"` a step costs nothing, and the bound holds after merges only. Layers then take any norms s_i; if
    these are above c together, all limits are t s_i, with t such that the bound holds, and the singular values of each
    layer are cut there ("clip"), or the layer is divided ("scale"). `p4.finalize` leaves what the network computes
    now: call `p4.merge` first, or be warned where that is above c.

    Biases train as ever. A weight that is assigned, or comes from a checkpoint of a plain model, has to keep to its
    layer's present share.

    Args:
        model: an `nn.Sequential` (of `nn.Sequential`s and `Residual`s) of `nn.Linear`, convolutions whose padding is
            zero or circular, and layers whose constant is known, see `p4torch.networks.constants`: ReLU, Tanh,
            Softplus, GELU, Softmax, Flatten, average and maximum pooling, ...
        bound: c > 0. A network above it is scaled down, all layers by the same factor, with a warning.
        rank, options: of `SpectralBound`.
        at: "step" or "merge": where the bound holds.
        method: "clip" or "scale", for `at="merge"`; convolutions are scaled.
        input_shape: of an input, (channels, height, width), without the batch. Convolutions are then certified for
            images as large as theirs (smaller ones, too, if all padding is with zeros), closer to their norms;
            else for all sizes.

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
        input_shape: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model)
        bound = check_number("bound", bound, 1e-30)
        layers, self.chain = read(model)
        self.at, self.input_shape = at, None if input_shape is None else tuple(input_shape)
        least = self.chain.value([0.0] * len(layers))
        if least >= bound:
            raise ArgumentError.of("bound", f"above {least:g}, the constant of the skips alone", bound)
        self.register_buffer("bound", torch.tensor(float(bound), dtype=torch.float64))
        options = {"rank": rank, "at": at, "method": method, **options}
        perturbations = _perturbations(model, layers, self.input_shape, **options)
        norms = [float(perturbation.certificate.norm) for perturbation in perturbations]
        if self.chain.value(norms) > bound:
            norms = self._scale(list(layers.values()), perturbations, norms)
        for layer, perturbation, share in zip(layers.values(), perturbations, self._shares(norms), strict=True):
            perturbation.certificate.bound.fill_(share)
            perturbation.bound = None  # a share is a part of the state
            perturb(layer, "weight", partial(_given, perturbation), view="tensor")

    @property
    def constant(self) -> float:
        """κ, of the layers without weights; those in branches count there."""
        return self.chain.constant

    def _shares(self, norms: Sequence[float]) -> list[float]:
        return self.chain.shares(norms, float(self.bound))

    @torch.no_grad()
    def _scale(
        self, layers: Sequence[Weighted], perturbations: Sequence[Bounded], norms: Sequence[float]
    ) -> list[float]:
        """Bring the start inside, by one factor for all layers. Their norms then."""
        pairs = list(zip(perturbations, layers, strict=True))
        room = max(ROOM, *(perturbation.rounding(layer.weight) for perturbation, layer in pairs))
        factor = self.chain.factor(norms, float(self.bound)) / (1 + room)
        warn(
            f"`model` has a certified Lipschitz constant of {self.chain.value(norms):.3g}, above "
            f"`bound` = {float(self.bound):g}: each of its {len(layers)} layers is multiplied by {factor:.3g}",
            ProjectionWarning,
        )
        for layer in layers:
            layer.weight.mul_(factor)
        return [float(perturbation.norm_of(layer.weight)) for perturbation, layer in pairs]

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        """A certified upper bound of the network's constant as it computes now, `()`. At most `bound`; with
        `at="merge"` right after a merge."""
        norms = [cast(Bounded, site.perturbation).norm(site.base) for site in self.sites()]
        return cast(Tensor, self.chain.value(norms))

    @torch.no_grad()
    def defect(self) -> Tensor:
        """max(0, L / c - 1) of the bases, certified, `()`."""
        norms = [cast(Bounded, site.perturbation).norm_of(site.base) for site in self.sites()]
        constant = self.chain.value(norms)
        return cast(Tensor, (constant / self.bound - 1).clamp_min(0))

    def propose(self, sites: Sequence[Site]) -> list[Proposal]:
        perturbations = [cast(Bounded, site.perturbation) for site in sites]
        bases = [site.base for site in sites]
        if self.at == "step":
            limited = [perturbation.scaled(base) for perturbation, base in zip(perturbations, bases, strict=True)]
        else:
            limited = self._limited(perturbations, bases)
        shares = self._shares([float(norm) for _, norm in limited])
        bounds = [perturbation.certificate.bound for perturbation in perturbations]
        return [
            Proposal(base, [*perturbation.tracked(base, norm), (bound, torch.full_like(bound, share))])
            for perturbation, bound, (base, norm), share in zip(perturbations, bounds, limited, shares, strict=True)
        ]

    def _limited(self, perturbations: Sequence[Bounded], bases: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The candidates of `at="merge"`, cut or divided where they exceed c together, and their norms."""
        candidates = [perturbation.loose(base) for perturbation, base in zip(perturbations, bases, strict=True)]
        norms = [norm for _, norm in candidates]
        if not self.chain.value(norms) <= self.bound:
            norms = [
                perturbation.norm_of(exact.to(base.dtype))
                for perturbation, (exact, _), base in zip(perturbations, candidates, bases, strict=True)
            ]
        t = min(1.0, self.chain.factor([float(norm) for norm in norms], float(self.bound)))
        return [
            perturbation.inside(exact, base.dtype, norm, t * norm)
            for perturbation, base, (exact, _), norm in zip(perturbations, bases, candidates, norms, strict=True)
        ]

    def unwrap(self) -> nn.Module:
        layers, chain = read(self.model)
        made = _perturbations(self.model, layers, self.input_shape)
        now = chain.value([perturbation.certificate.norm for perturbation in made])
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


def _perturbations(
    model: nn.Module, layers: Mapping[str, Weighted], input_shape: tuple[int, ...] | None, **options: Any
) -> list[Bounded]:
    """The perturbations of all layers, before their shares are known."""
    check_options(SpectralBound, options)
    sizes = {} if input_shape is None else image_sizes(model, layers, input_shape)
    return [_perturbation(path, layer, sizes.get(path), **options) for path, layer in layers.items()]


def _perturbation(path: str, layer: Weighted, size: tuple[int, ...] | None, **options: Any) -> Bounded:
    try:
        weight = plain_parameter(layer, "weight").detach()
        check_real_matrix(weight)
        if not isinstance(layer, nn.Linear):
            known = {"size": size, "at": options.get("at", "step"), **layer_options(layer, "weight")}
            return ConvolutionBound(weight, bound=1.0, **known)
    except ArgumentError as error:
        raise ArgumentError.of("model", "of layers that can be perturbed", f"{path or 'itself'}: {error}") from error
    return SpectralBound(weight, bound=1.0, **options)


def _given(perturbation: Bounded, base: Tensor) -> Bounded:
    return perturbation
