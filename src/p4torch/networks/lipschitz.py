"""Networks with a bounded Lipschitz constant, whose layers trade shares of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError, ProjectionWarning
from p4torch.joint import Joint
from p4torch.merging import Proposal
from p4torch.networks.constants import lipschitz_constant
from p4torch.properties import SpectralBound
from p4torch.properties.checks import check_number
from p4torch.properties.norms import norm_bound, norm_of_low_rank, rounding_share
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

    Args:
        model: an `nn.Sequential` (of `nn.Sequential`s) of `nn.Linear`, convolutions with zero padding and without
            groups, and layers whose constant is known, see `p4torch.networks.constants`: ReLU, Tanh, Sigmoid, Softplus,
            GELU, SiLU, Flatten, ... A convolution's norm is at most √p times that of its kernel as a matrix
            `(out, rest)`, p its number of positions, since every entry of the input is in p patches at most.
        bound: c > 0. A network above it is scaled down, all layers by the same factor, with a warning.
        rank, options: of `SpectralBound`.
        method: "clip" or "scale".

    Raises:
        ArgumentError: a layer whose constant is not known, by name; no layer with weights; a bound out of range.

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
        check_number("bound", bound, 1e-30)
        weighted, self.constant = _layers(model)
        self.register_buffer("bound", torch.tensor(float(bound), dtype=torch.float64))
        norms = torch.stack([norm_bound(layer.weight.detach().flatten(1)) for layer in weighted])
        budget = math.log(bound / self.constant) / len(weighted)
        excess = float(norms.log().mean()) - budget
        if excess > 0:
            factor = math.exp(-excess) * (1 - ROOM)
            warnings.warn(
                f"`model` has a certified Lipschitz constant of {self.constant * float(norms.prod()):.3g}, above "
                f"`bound` = {bound:g}: each of its {len(weighted)} layers is multiplied by {factor:.3g}",
                ProjectionWarning,
                stacklevel=2,
            )
            with torch.no_grad():
                for layer in weighted:
                    layer.weight.mul_(factor)
            norms = norms * factor
        for layer, share in zip(weighted, _shares(norms, budget), strict=True):
            perturb(layer, "weight", SpectralBound, bound=float(share), rank=rank, method=method, **options)

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

    def extra_repr(self) -> str:
        return f"bound={float(self.bound):g}, constant={self.constant:g}"


def _shares(norms: Tensor, budget: Tensor | float) -> Tensor:
    """Bounds in the ratios of the norms, whose logarithms have the mean `budget`."""
    logarithms = norms.clamp_min(torch.finfo(norms.dtype).tiny).log()
    return (logarithms - logarithms.mean() + budget).exp()


def _bound_now(site: Site) -> Tensor:
    perturbation = cast(SpectralBound, site.perturbation)
    known = perturbation.certificate.norm + norm_of_low_rank(perturbation.u, perturbation.v)
    return known * (1 + rounding_share(site.base))


_Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def _layers(model: nn.Module) -> tuple[list[_Weighted], float]:
    """The layers with weights, and the product of all that is not their matrices' norms."""
    weighted: list[_Weighted] = []
    constant = 1.0
    for path, layer in _leaves(model, ""):
        known = _overlap(layer) if isinstance(layer, _Weighted) else lipschitz_constant(layer)
        if known is None:
            expected = "made of nn.Sequential, nn.Linear, nn.Conv and layers whose Lipschitz constant is known"
            raise ArgumentError.of("model", expected, f"{path or 'itself'}: {type(layer).__name__}")
        if isinstance(layer, _Weighted):
            if any(layer is other for other in weighted):
                raise ArgumentError.of("model", "a chain of different layers", f"one layer twice: {path}")
            weighted.append(layer)
        constant *= known
    if not weighted:
        raise ArgumentError.of("model", "a chain with at least one nn.Linear or nn.Conv", type(model).__name__)
    return weighted, constant


def _overlap(layer: _Weighted) -> float | None:
    """‖layer‖ / ‖matrix‖ at most: 1 of a linear layer, √p of a kernel of p positions; None if it is another kind."""
    if isinstance(layer, nn.Linear):
        return 1.0 if type(layer) is nn.Linear else None
    plain = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and layer.groups == 1 and layer.padding_mode == "zeros"
    return math.prod(layer.weight.shape[2:]) ** 0.5 if plain else None


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        yield path, module
        return
    for name, child in module._modules.items():
        yield from _leaves(child, f"{path}.{name}" if path else name)
