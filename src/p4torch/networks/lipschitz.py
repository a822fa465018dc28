"""Networks with a bounded Lipschitz constant, whose layers trade shares of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError, ProjectionWarning, warn
from p4torch.joint import Joint
from p4torch.merging import Proposal
from p4torch.networks.constants import lipschitz_constant
from p4torch.places import plain_parameter
from p4torch.properties import SpectralBound
from p4torch.properties.checks import check_number
from p4torch.properties.norms import norm_bound, norm_of_low_rank, rounding_share
from p4torch.properties.shapes import check_real_matrix
from p4torch.sites import Site, perturb

#: The start is brought to this share below the bound, so that rounding does not lead above it.
ROOM = 1e-6


class LipschitzNetwork(Joint):
    """S = {networks with Π_i ‖A_i‖₂ · κ <= c}, κ the constants of what has no weights: |f(x) - f(y)| <= c |x - y|.

        network = p4.LipschitzNetwork(nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1)), bound=1.0)

    Each layer's weight is perturbed as in `SpectralBound`, R_B(A) = A + U Vᵀ, but only the product is bounded: at each
    merge, where all layers merge together, they propose whatever norms they like, s_i. If Π s_i κ <= c, nothing is
    changed. Else all limits are s_i (c / κ Π s_j)^(1/L), the nearest point of the budget for log s, and the singular
    values of each layer are cut there ("clip"), or the layer is divided ("scale"). So a layer may grow far beyond
    c^(1/L), at the expense of others. What is left of c is given to all layers alike.

    Norms are certified upper bounds (Gram iteration), so the bound holds, in exact arithmetic, for the network after a
    merge; between merges it may be left, as `lipschitz_bound()` tells. It costs no products while the sum of certified
    norm and ‖U Vᵀ‖₂ stays within the budget; then O(np²) a layer. Biases train as ever.

    `p4.finalize` leaves what the network computes now: call `p4.merge` first, or be warned where that is above c. A
    weight that is assigned, or comes from a checkpoint of a plain model, has to keep to its layer's present share.

    Args:
        model: an `nn.Sequential` (of `nn.Sequential`s) of `nn.Linear`, convolutions with zero padding and without
            groups, and layers whose constant is known, see `p4torch.networks.constants`: ReLU, Tanh, Sigmoid, Softplus,
            GELU, SiLU, Softmax, Flatten, ... A convolution's norm is at most √p times that of its kernel as a matrix
            `(out, rest)`, where every entry of the input is in p patches at most: all positions of the kernel at
            stride 1, a single one where patches do not overlap.
        bound: c > 0. A network above it is scaled down, all layers by the same factor, with a warning.
        rank, options: of `SpectralBound`.
        method: "clip" or "scale".

    Raises:
        ArgumentError: a layer whose constant is not known, or a weight that is not finite, by name; one layer or weight
            twice; no layer with weights; a bound or an option out of range. The model is as it was, then.

    Source: Gouk, Frank, Pfahringer and Cree (2021), regularisation of neural networks by enforcing Lipschitz
    continuity, for the product bound.
    """

    bound: Tensor

    def __init__(
        self,
        model: nn.Module,
        bound: float,
        rank: int = 1,
        *,
        method: Literal["clip", "scale"] = "clip",
        **options: Any,
    ) -> None:
        super().__init__(model)
        bound = check_number("bound", bound, 1e-30)
        layers, self.constant = _layers(model)
        self.register_buffer("bound", torch.tensor(float(bound), dtype=torch.float64))
        members = [_member(path, layer, rank=rank, method=method, **options) for path, layer in layers.items()]
        budget = math.log(bound / self.constant) / len(layers)
        norms = torch.stack([member.certificate.norm for member in members])
        if float(norms.log().mean()) > budget:
            norms = self._scale(list(layers.values()), norms, budget)
        for layer, member, share in zip(layers.values(), members, _shares(norms, budget), strict=True):
            member.certificate.bound.copy_(share)
            perturb(layer, "weight", partial(_given, member), view="matrix")

    @torch.no_grad()
    def _scale(self, layers: Sequence[_Weighted], norms: Tensor, budget: float) -> Tensor:
        """Bring the start inside, by one factor for all layers. Their norms then."""
        room = max(ROOM, *(rounding_share(_matrix(layer)) for layer in layers))
        factor = math.exp(budget - float(norms.log().mean())) / (1 + room)
        warn(
            f"`model` has a certified Lipschitz constant of {self.constant * float(norms.prod()):.3g}, above "
            f"`bound` = {float(self.bound):g}: each of its {len(layers)} layers is multiplied by {factor:.3g}",
            ProjectionWarning,
        )
        for layer in layers:
            layer.weight.mul_(factor)
        return torch.stack([norm_bound(_matrix(layer)) for layer in layers])

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        """An upper bound of the network's constant as it computes now, `()`: κ Π (s_i + ‖U_i V_iᵀ‖₂) of certified norms
        s_i. Right after a merge at most `bound`."""
        norms = [_bound_now(site) for site in self.sites()]
        return self.constant * torch.stack(norms).prod()

    @torch.no_grad()
    def defect(self) -> Tensor:
        """max(0, κ Π ‖A_i‖₂ / c - 1) of the bases, certified, `()`."""
        norms = torch.stack([norm_bound(site.base) for site in self.sites()])
        return (self.constant * norms.prod() / self.bound - 1).clamp_min(0)

    def propose(self, sites: Sequence[Site]) -> list[Proposal]:
        members = [cast(SpectralBound, site.perturbation) for site in sites]
        budget = (self.bound / self.constant).log() / len(sites)
        candidates = [member.loose(site.base) for member, site in zip(members, sites, strict=True)]
        norms = torch.stack([norm for _, norm in candidates])
        if bool(norms.log().mean() > budget):
            dtypes = [site.base.dtype for site in sites]
            norms = torch.stack(
                [norm_bound(exact.to(dtype)) for (exact, _), dtype in zip(candidates, dtypes, strict=True)]
            )
        limits = norms * (budget - norms.log().mean()).clamp_max(0).exp()
        inside = [
            member.certificate.bring_inside(exact, site.base.dtype, norm, member.method == "clip", limit)
            for member, site, (exact, _), norm, limit in zip(members, sites, candidates, norms, limits, strict=True)
        ]
        shares = _shares(torch.stack([norm for _, norm in inside]), budget)
        return [
            Proposal(base, [(member.certificate.norm, norm), (member.certificate.bound, share)])
            for member, (base, norm), share in zip(members, inside, shares, strict=True)
        ]

    def unwrap(self) -> nn.Module:
        norms = [norm_bound(_matrix(layer)) for layer in self.model.modules() if isinstance(layer, _Weighted)]
        now = self.constant * torch.stack(norms).prod()
        if bool(now > self.bound * (1 + ROOM)):
            warn(
                f"the finalized model has a certified Lipschitz constant of {float(now):.3g}, above `bound` = "
                f"{float(self.bound):g}: `p4.merge` before `p4.finalize` brings it inside",
                ProjectionWarning,
            )
        return self.model

    def extra_repr(self) -> str:
        return f"bound={float(self.bound):g}, constant={self.constant:g}"


def _shares(norms: Tensor, budget: Tensor | float) -> Tensor:
    """Bounds in the ratios of the norms, whose logarithms have the mean `budget`. Layers of zeros, which have no ratio
    to others, get what these leave."""
    logarithms, zero = norms.log(), norms == 0
    if bool(zero.any()):
        left = budget * norms.numel() - logarithms[~zero].sum()
        return torch.where(zero, (left / zero.sum()).exp(), norms)
    return (logarithms - logarithms.mean() + budget).exp()


def _member(path: str, layer: _Weighted, **options: Any) -> SpectralBound:
    """The perturbation of one layer, before its share is known."""
    try:
        check_real_matrix(plain_parameter(layer, "weight"))
    except ArgumentError as error:
        raise ArgumentError.of("model", "of layers that can be perturbed", f"{path or 'itself'}: {error}") from error
    return SpectralBound(_matrix(layer), bound=1.0, **options)


def _given(member: SpectralBound, base: Tensor) -> SpectralBound:
    return member


def _matrix(layer: _Weighted) -> Tensor:
    return layer.weight.detach().flatten(1)


def _bound_now(site: Site) -> Tensor:
    perturbation = cast(SpectralBound, site.perturbation)
    known = perturbation.certificate.norm + norm_of_low_rank(perturbation.u, perturbation.v)
    return known * (1 + rounding_share(site.base))


_Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def _layers(model: nn.Module) -> tuple[dict[str, _Weighted], float]:
    """The layers with weights by path, and the product of all that is not their matrices' norms."""
    weighted: dict[str, _Weighted] = {}
    constant = 1.0
    for path, layer in _leaves(model, ""):
        known = _overlap(layer) if isinstance(layer, _Weighted) else lipschitz_constant(layer)
        if known is None:
            expected = "made of nn.Sequential, nn.Linear, nn.Conv and layers whose Lipschitz constant is known"
            raise ArgumentError.of("model", expected, f"{path or 'itself'}: {type(layer).__name__}")
        if isinstance(layer, _Weighted):
            for other_path, other in weighted.items():
                if layer.weight is other.weight or layer.weight.data_ptr() == other.weight.data_ptr() != 0:
                    came = f"one layer twice: {path}" if layer is other else f"one weight in two: {other_path}, {path}"
                    raise ArgumentError.of("model", "a chain of different layers", came)
            weighted[path] = layer
        constant *= known
    if not weighted:
        raise ArgumentError.of("model", "a chain with at least one nn.Linear or nn.Conv", type(model).__name__)
    return weighted, constant


def _overlap(layer: _Weighted) -> float | None:
    """‖layer‖ / ‖matrix‖ at most: 1 of a linear layer; √p of a kernel, p the largest number of patches that an entry of
    the input is in; None if it is another kind.

    Output i sees entry i s + j d at position j. Those j that see one entry differ by multiples of s / gcd(s, d), so
    of k positions along an axis at most ⌈k gcd(s, d) / s⌉ do: k at stride 1, one where s = k.
    """
    if isinstance(layer, nn.Linear):
        return 1.0 if type(layer) is nn.Linear else None
    plain = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and layer.groups == 1 and layer.padding_mode == "zeros"
    axes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    return math.prod(-(-k * math.gcd(s, d) // s) for k, s, d in axes) ** 0.5 if plain else None


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        yield path, module
        return
    for name, child in module._modules.items():
        yield from _leaves(child, f"{path}.{name}" if path else name)
