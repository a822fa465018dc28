"""Bijective activations, element by element."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch.flows.bijection import Bijection, check_dtype


class BentIdentity(Bijection):
    """B(x) = (√(x² + 1) - 1)/2 + x, with slopes between 1/2 and 3/2.

    Its inverse is B⁻¹(y) = (2c - √(c² + 3))/3 with c = 2y + 1, with slopes between 2/3 and 2.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_dtype(x)
        root = torch.sqrt(x.square() + 1)
        return (root - 1) / 2 + x, torch.log1p(x / (2 * root)).sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_dtype(z, name="z")
        c = 2 * z + 1
        root = torch.sqrt(c.square() + 3)
        return (2 * c - root) / 3, torch.log((4 - 2 * c / root) / 3).sum(-1)
