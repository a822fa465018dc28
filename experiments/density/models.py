"""The models, with as many trainable parameters within 2 %."""

from __future__ import annotations

from collections.abc import Callable

from p4torch.flows import AffineCoupling, Bijection, Chain, Flow, InvertibleMLP, StandardNormal, Swap

#: Layers of the P4Inv flows (section 4.1 of the paper): 200 · (B 4 + bias 2) = 1,200 trainable parameters, where B is
#: u and v, or all of a 2 x 2 block.
DEPTH = 200

#: Couplings of the RealNVP and the hidden widths of their nets: 13 · 93 = 1,209 parameters. Of the splits within 2 %
#: that were tried, 8 of (5, 9), 12 of (16,) and 27 of (3, 3) were weaker, 18 of (4, 4) level with it and slower.
COUPLINGS, HIDDEN = 13, (5, 5)


def p4inv() -> Flow:
    """200 layers of 2 x 2 matrices, bent identities and their inverses in turn; the paper's perturbations of rank 1."""
    return Flow(InvertibleMLP(2, depth=DEPTH, init="scattered", rank=1, scale=1.0), StandardNormal(2))


def whole() -> Flow:
    """The same chain; every matrix moves in all of its four directions, relative to itself."""
    return Flow(InvertibleMLP(2, depth=DEPTH, init="scattered", form="relative"), StandardNormal(2))


def rnvp() -> Flow:
    """Affine couplings with swaps between them."""
    layers: list[Bijection] = []
    for _ in range(COUPLINGS):
        layers += [AffineCoupling(2, HIDDEN), Swap(2)]
    return Flow(Chain(layers[:-1]), StandardNormal(2))


BUILDERS: dict[str, Callable[[], Flow]] = {"rnvp": rnvp, "p4inv": p4inv, "whole": whole}
MODELS = tuple(BUILDERS)
TITLES = {"rnvp": "RealNVP", "p4inv": "P4Inv, rank 1", "whole": "P4Inv, whole matrices"}


def build(model: str) -> Flow:
    """A new model; its initial weights come from torch's global generator."""
    return BUILDERS[model]()
