"""Invertible linear layers with a tracked inverse and determinant: P4Inv in a flow."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError
from p4torch.flows.bijection import Bijection, check_event, check_features
from p4torch.flows.fused_run import Step
from p4torch.properties import Invertible
from p4torch.sites import lookup, perturb
from p4torch.tracking import TrackedInverse

Init = Literal["identity", "reverse", "orthogonal", "scattered"] | Tensor


def initial_matrix(features: int, init: Init) -> Tensor:
    """`(n, n)`: the identity, the reversal of the features, a random orthogonal matrix, or the tensor given."""
    if isinstance(init, Tensor):
        if init.shape[-2:] != (features, features):
            raise ArgumentError.of("init", f"of shape (..., {features}, {features})", tuple(init.shape))
        if not init.is_floating_point():
            raise ArgumentError.of("init", "of a floating-point dtype", init.dtype)
        return init.detach().clone()
    if init == "identity":
        return torch.eye(features)
    if init == "reverse":
        return torch.eye(features).flip(0)
    if init == "orthogonal":
        return nn.init.orthogonal_(torch.empty(features, features))
    raise ArgumentError.of("init", "identity, reverse, orthogonal or a tensor (n, n)", repr(init))


class InvertibleLinear(Bijection):
    """z = W x + b with W = R_B(A); both directions and log|det W| cost O(n²) a point, O(n²k) a batch.

    Args:
        features: n.
        bias: whether there is a b.
        rank: k of the perturbation.
        form: "additive" or "exponential", see `p4torch.Invertible`.
        init: of A.
        options: of `p4torch.Invertible`.
    """

    def __init__(
        self,
        features: int,
        bias: bool = True,
        rank: int = 1,
        form: Literal["additive", "exponential"] = "additive",
        init: Init = "identity",
        **options: Any,
    ) -> None:
        super().__init__()
        self.features = check_features(features)
        matrix = initial_matrix(features, init)
        if matrix.dim() != 2:
            raise ArgumentError.of("init", f"of shape ({features}, {features})", tuple(matrix.shape))
        self.weight = nn.Parameter(matrix)
        self.bias = nn.Parameter(self.weight.new_zeros(features)) if bias else None
        perturb(self, "weight", Invertible, rank=rank, form=form, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.features)
        perturbation, base = lookup(self, "weight")
        return perturbation.affine_logabsdet(base, x, self.bias)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_event(z, self.features)
        perturbation, base = lookup(self, "weight")
        y = z if self.bias is None else z - self.bias
        x, logabsdet = perturbation.solve_logabsdet(base, y)
        return x, -logabsdet

    def step(self) -> Step | None:
        perturbation, base = lookup(self, "weight")
        if type(perturbation) is not Invertible or perturbation.form != "additive" or base.requires_grad:
            return None
        if perturbation.sketch is not None:  # it looks at the gradient of this layer
            return None
        tracked = cast(TrackedInverse, perturbation._modules["tracked"]).current(base)
        own, bias = perturbation._parameters, self._parameters.get("bias")  # by attribute it takes ten times as long
        tensors = (base, tracked._parameters["inverse"], own["u"], own["v"], *(() if bias is None else (bias,)))
        return Step("linear", self.features, cast("tuple[Tensor, ...]", tensors), tracked._buffers["logabsdet"])

    def extra_repr(self) -> str:
        return f"features={self.features}, bias={self.bias is not None}"
