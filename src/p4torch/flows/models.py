"""Densities in one line: flows whose defaults are meant to be left as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p4torch._options import check_integer
from p4torch.flows._context import check_context_features
from p4torch.flows.bijection import Bijection, Chain, check_features
from p4torch.flows.coupling import AffineCoupling
from p4torch.flows.flow import Flow, StandardNormal
from p4torch.flows.glow import Glow as Glow  # of images, beside those of vectors
from p4torch.flows.linear import Init, InvertibleLinear
from p4torch.flows.spline import SplineCoupling
from p4torch.flows.spline_features import Spline
from p4torch.flows.standardize import Standardize

__all__ = ["NSF", "MixingFlow", "RealNVP"]

#: g of the linear layers, see `p4torch.core.step_size`: they learn with the rates of networks, 1e-3 with Adam.
SCALE = 3.0


def NSF(features: int, context: int = 0, *, layers: int = 4, hidden: Sequence[int] = (64, 64), bins: int = 8) -> Flow:
    """A neural spline flow: rational-quadratic couplings, mixed by invertible linear layers (P4Inv), which the engine
    merges.

        x -> Standardize -> (SplineCoupling -> InvertibleLinear) x layers -> N(0, I)

    `flow.fit_scale(x)` sets mean and covariance of the first layer to those of the data; do it before training. One
    feature gets a `Spline`, or with a context a coupling that sees the context alone. Linear layers depend on a
    context, too: their shifts, and their matrices by moves of rank one.

    Args:
        features: n >= 1.
        context: c, how many features the context has; of order 1, for best results.
        layers: how many couplings.
        hidden: widths of the couplings' networks.
        bins: of each spline.

    Example:
        >>> import torch
        >>> from p4torch.flows.models import NSF
        >>> x = torch.randn(100, 3) * torch.tensor([1e-3, 1.0, 570.0])
        >>> flow = NSF(3)
        >>> flow.fit_scale(x)
        >>> flow.log_prob(x).shape, flow.sample(5).shape
        (torch.Size([100]), torch.Size([5, 3]))

    Source: Durkan, Bekasov, Murray and Papamakarios (2019), neural spline flows; Krämer, Köhler and Noé (2020).
    """
    features, context, layers = _checked(features, context, layers)
    moved = range(features // 2, features)

    def coupling() -> Bijection:
        if features == 1 and not context:
            return Spline(1, bins=bins)
        return SplineCoupling(features, moved, hidden=hidden, bins=bins, context=context)

    return _alternating(features, context, layers, coupling)


def RealNVP(features: int, context: int = 0, *, layers: int = 6, hidden: Sequence[int] = (64, 64)) -> Flow:
    """Affine couplings, mixed by invertible linear layers (P4Inv); cheaper than `NSF`, and less flexible.

        x -> Standardize -> (AffineCoupling -> InvertibleLinear) x layers -> Spline -> N(0, I)

    Args:
        features, context, hidden: as those of `NSF`.
        layers: how many couplings.

    Source: Dinh, Sohl-Dickstein and Bengio (2017); Krämer, Köhler and Noé (2020).
    """
    features, context, layers = _checked(features, context, layers)

    def coupling() -> Bijection:
        if features == 1 and not context:
            return Spline(1)
        return AffineCoupling(features, hidden, context=context)

    return _alternating(features, context, layers, coupling, [Spline(features)])


def MixingFlow(features: int, context: int = 0, *, layers: int = 4, bins: int = 8) -> Flow:
    """Invertible linear layers (P4Inv) and a spline for each feature between them, without any network: few numbers to
    train, for small tables, and inverse and determinant at no more than a product of matrices.

        x -> Standardize -> Spline -> (InvertibleLinear -> Spline) x layers -> N(0, I)

    With a context, the linear layers depend on it, as in `NSF`.

    Args:
        features, context: as those of `NSF`.
        layers: how many linear layers.
        bins: of each spline.

    Source: Krämer, Köhler and Noé (2020); Meng, Song, Song and Ermon (2020), Gaussianization flows.
    """
    features, context, layers = _checked(features, context, layers)
    members: list[Bijection] = [Standardize(features, whiten=True), Spline(features, bins=bins)]
    for _ in range(layers):
        members += [_linear(features, context), Spline(features, bins=bins)]
    return Flow(Chain(members), StandardNormal(features))


def _alternating(
    features: int, context: int, layers: int, coupling: Callable[[], Bijection], last: Sequence[Bijection] = ()
) -> Flow:
    members: list[Bijection] = [Standardize(features, whiten=True)]
    for _ in range(layers):
        members += [coupling(), _linear(features, context)]
    return Flow(Chain([*members, *last]), StandardNormal(features))


def _linear(features: int, context: int) -> InvertibleLinear:
    """A random rotation at first; with a context its shift depends on it, and its matrix by a move of rank one."""
    init: Init = "orthogonal" if features > 1 else "identity"
    rank = 1 if context and features > 1 else 0
    return InvertibleLinear(features, init=init, scale=SCALE, context=context, context_rank=rank)


def _checked(features: int, context: int, layers: int) -> tuple[int, int, int]:
    return check_features(features), check_context_features(context), check_integer("layers", layers, 1)
