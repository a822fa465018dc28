"""Flows that do not train any more: inverses and determinants as constants, for sampling, densities and export."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError
from p4torch.flows.bijection import Bijection
from p4torch.linalg.tracked_inverse import TrackedInverse
from p4torch.parametrize.sites import finalize, perturb
from p4torch.properties._math.checks import check_nonsingular

M = TypeVar("M", bound=nn.Module)


class Constant(Perturbation):
    """S = {A}, without any B: A⁻¹, log|det A| and sign det A are there and not computed."""

    def __init__(self, base: Tensor) -> None:
        super().__init__(base)
        self.tracked = TrackedInverse(base)
        check_nonsingular(base, inverse=self.tracked.inverse)

    def forward(self, base: Tensor) -> Tensor:
        return base

    def reset(self, generator: torch.Generator | None) -> None:
        """Nothing to reset."""

    def defect(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(self.skips, dtype=tensor.dtype)

    def refresh(self, base: Tensor) -> None:
        self.tracked.refresh(base)

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        return linalg.rows_times(y, self.inverse(base))

    def inverse(self, base: Tensor) -> Tensor:
        return self.tracked.current(base).inverse

    def logabsdet(self, base: Tensor) -> Tensor:
        return self.tracked.current(base).logabsdet.to(base.dtype)

    def sign(self, base: Tensor) -> Tensor:
        return self.tracked.current(base).sign.to(base.dtype)


def for_inference(flow: M) -> M:
    """A finalized copy of a flow, in `eval()`, whose square weights have constant inverses and log|det|.

    A finalized flow computes these anew in each pass, by LAPACK, which no format for deployment knows. Real weights
    only: complex ones stay as they are.

    Raises:
        ArgumentError: no module; a singular weight.
    """
    if not isinstance(flow, nn.Module):
        raise ArgumentError.of("flow", "an nn.Module", type(flow).__name__)
    plain = finalize(copy.deepcopy(flow)).eval().requires_grad_(False)
    for layer in [module for module in plain.modules() if isinstance(module, Bijection)]:
        weight = layer._parameters.get("weight")
        if (
            weight is not None
            and weight.dim() >= 2
            and weight.shape[-2] == weight.shape[-1]
            and not weight.is_complex()
        ):
            perturb(layer, "weight", Constant)
    return plain
