"""A deep invertible MLP: linear layers and bijective activations under one batched perturbation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch._options import check_integer
from p4torch.core.blocks import Block
from p4torch.errors import ArgumentError
from p4torch.flows._fused.chain import chain_inverse, chain_reference, fused_chain
from p4torch.flows._logabsdet import with_logabsdet
from p4torch.flows.bijection import Bijection, check_event, check_features
from p4torch.flows.linear import Init, default_form, initial_matrix
from p4torch.parametrize.lookup import perturbation_of
from p4torch.parametrize.sites import perturb
from p4torch.properties import Invertible
from p4torch.properties.invertible import Form

#: Largest stretch and shift of the coordinates in which a pair of layers acts.
_PAIRED = {"orthogonal": (1.0, 0.0), "scattered": (2.0, 3.0)}


def paired_layers(features: int, depth: int, stretch: float, shift: float) -> tuple[Tensor, Tensor]:
    """Weights `(depth, n, n)` and biases `(depth, n)` of a chain that is a rotation, whatever bijection stands between
    layers 2j and 2j + 1 if its inverse follows: layer 2j leads from the coordinates s R x + b of pair j - 1 to those
    of pair j, layer 2j + 1 is the identity. R is a random rotation (or reflection), s in [1, stretch] and b / s in
    [-shift, shift]; the last pair has s = 1 and b = 0."""
    weight, bias = torch.eye(features).repeat(depth, 1, 1), torch.zeros(depth, features)
    matrix, offset = torch.eye(features), torch.zeros(features)
    for index in range(0, depth, 2):
        new_matrix, new_offset = nn.init.orthogonal_(torch.empty(features, features)), torch.zeros(features)
        if index + 2 < depth:
            scale = stretch ** torch.rand(())
            new_matrix, new_offset = scale * new_matrix, scale * shift * (2 * torch.rand(features) - 1)
        weight[index] = new_matrix @ torch.linalg.inv(matrix)
        bias[index] = new_offset - weight[index] @ offset
        matrix, offset = new_matrix, new_offset
    return weight, bias


class InvertibleMLP(Bijection):
    """`depth` layers z <- a_i(W_i z + b_i), where a_i is the bent identity and its inverse in turn.

    All weights are one tensor `(depth, n, n)` with one perturbation, so that perturbing, inverses and determinants of
    all layers are computed at once and only the chain itself is sequential. This is the flow of Krämer, Köhler and Noé
    (2020), section 4.1, at 2 features and depth 200.

    Rounding adds up along a deep chain. The inverse therefore runs in float64 inside, with the tracked inverses
    polished against the weights, and so does `forward` where no gradient is asked for: samples and densities are then
    as exact as their own dtype. A training step (`forward` with gradients) stays in the dtype of the layer.

    Args:
        features: n.
        depth: number of layers.
        rank, block, form, options: of `p4torch.Invertible`. By default B moves whole matrices, in the triangular form.
            The paper's are rank=1, scale=1.
        init: of the W_i. "identity" or "reverse" for all, or a tensor `(n, n)` or `(depth, n, n)`. With "orthogonal"
            and "scattered" each inverse activation undoes the activation before it, so that the whole flow starts as a
            rotation, while its pairs of layers act in coordinates of their own: random rotations, for "scattered" also
            stretched by up to 2 and shifted by up to 3, which scatters the bends over the data.
    """

    def __init__(
        self,
        features: int,
        depth: int,
        rank: int | None = None,
        form: Form | None = None,
        init: Init = "identity",
        *,
        block: Block | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.features = check_features(features)
        self.depth = depth = check_integer("depth", depth, 1)
        if isinstance(init, str) and init in _PAIRED:
            weight, bias = paired_layers(features, depth, *_PAIRED[init])
        else:
            matrix = initial_matrix(features, init)
            if matrix.dim() not in (2, 3) or (matrix.dim() == 3 and len(matrix) != depth):
                expected = f"of shape ({features}, {features}) or ({depth}, {features}, {features})"
                raise ArgumentError.of("init", expected, tuple(matrix.shape))
            weight = matrix.repeat(depth, 1, 1) if matrix.dim() == 2 else matrix
            bias = weight.new_zeros(depth, features)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        options |= {"block": block}
        form = form or default_form(features, rank, options)
        perturb(self, "weight", Invertible, rank=rank, form=form, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        perturbation, base = perturbation_of(self, "weight")
        check_event(x, self.features, base.dtype)
        with linalg.full_precision(x.device):
            weight, logabsdet = with_logabsdet(perturbation, base)
            constant = logabsdet.sum()
            if torch.is_grad_enabled():
                z, total = fused_chain(x, weight, self.bias)
            else:
                z, total = chain_reference(x.double(), weight.double(), self.bias.double())
            return z.to(x.dtype), (total + constant).to(x.dtype)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        perturbation, base = perturbation_of(self, "weight")
        check_event(z, self.features, base.dtype, name="z")
        with linalg.full_precision(z.device):
            weight, inverse = perturbation(base).double(), perturbation.inverse(base).double()
            polished = linalg.hyperpower(weight, inverse, order=2)
            x, total = chain_inverse(z.double(), polished, self.bias.double())
            return x.to(z.dtype), (total - perturbation.logabsdet(base).sum()).to(z.dtype)

    def extra_repr(self) -> str:
        return f"features={self.features}, depth={self.depth}"
