"""A deep invertible MLP: linear layers and bijective activations under one batched perturbation."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.errors import ArgumentError
from p4torch.flows.bijection import Bijection, check_event, check_features
from p4torch.flows.fused import fused_chain, readable_chain, readable_inverse
from p4torch.flows.linear import Init, initial_matrix
from p4torch.properties import Invertible
from p4torch.sites import lookup, perturb


class InvertibleMLP(Bijection):
    """`depth` layers z <- a_i(W_i z + b_i), where a_i is the bent identity and its inverse in turn.

    All weights are one tensor `(depth, n, n)` with one perturbation, so that perturbing, inverses and determinants of
    all layers are computed at once and only the chain itself is sequential. This is the flow of Krämer, Köhler and Noé
    (2020), section 4.1, at 2 features and depth 200.

    Rounding adds up along a deep chain. Where no gradient is asked for, the chain therefore runs in float64 inside,
    with the inverses polished against the weights: samples and densities are then as exact as their own dtype.

    Args:
        features: n.
        depth: number of layers.
        rank, form, options: of `p4torch.Invertible`.
        init: of the W_i. "identity" or "reverse" for all, or a tensor `(n, n)` or `(depth, n, n)`. "orthogonal" draws
            a rotation for every second layer only: each inverse activation then meets the activation before it, the
            whole flow starts as a rotation, and its pairs of layers act along different axes. It learns faster.
    """

    def __init__(
        self,
        features: int,
        depth: int,
        rank: int = 1,
        form: Literal["additive", "exponential"] = "additive",
        init: Init = "identity",
        **options: Any,
    ) -> None:
        super().__init__()
        self.features = check_features(features)
        if not isinstance(depth, int) or depth < 1:
            raise ArgumentError.of("depth", "an integer >= 1", repr(depth))
        self.depth = depth
        alternate: list[Init] = [init, "identity" if isinstance(init, str) and init == "orthogonal" else init]
        matrices = [initial_matrix(features, alternate[index % 2]) for index in range(depth)]
        stacked = matrices[0] if matrices[0].dim() == 3 else torch.stack(matrices)
        if len(stacked) != depth:
            raise ArgumentError.of("init", f"of shape ({depth}, {features}, {features})", tuple(stacked.shape))
        self.weight = nn.Parameter(stacked)
        self.bias = nn.Parameter(stacked.new_zeros(depth, features))
        perturb(self, "weight", Invertible, rank=rank, form=form, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.features)
        perturbation, base = lookup(self, "weight")
        weight, constant = perturbation(base), perturbation.logabsdet(base).sum()
        if torch.is_grad_enabled():
            chain = readable_chain if torch.compiler.is_compiling() else fused_chain
            z, total = chain(x, weight, self.bias)
        else:
            z, total = readable_chain(x.double(), weight.double(), self.bias.double())
        return z.to(x.dtype), (total + constant).to(x.dtype)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_event(z, self.features)
        perturbation, base = lookup(self, "weight")
        inverse, constant = perturbation.inverse(base), perturbation.logabsdet(base).sum()
        if torch.is_grad_enabled():
            x, total = readable_inverse(z, inverse, self.bias)
        else:
            polished = linalg.hyperpower(perturbation(base).double(), inverse.double(), order=2)
            x, total = readable_inverse(z.double(), polished, self.bias.double())
        return x.to(z.dtype), (total - constant).to(z.dtype)

    def extra_repr(self) -> str:
        return f"features={self.features}, depth={self.depth}"
