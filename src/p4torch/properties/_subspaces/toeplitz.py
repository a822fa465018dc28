"""Toeplitz matrices: convolutions on a line."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.properties._math.diagonals import fft_applies, label_means, toeplitz, toeplitz_labels, toeplitz_rows
from p4torch.properties._math.shapes import check_real_matrix
from p4torch.properties.linear_subspace import LinearSubspace

#: From n + m on, an FFT is faster than the product with the matrix (CPU, 256 rows).
FFT_SIZE = 2000


class Toeplitz(LinearSubspace, kinds=("toeplitz",)):
    """S = {A `(..., n, m)` : A_ij depends on i - j alone}, R_B(A) = A + the Toeplitz matrix of the diagonals a
    `(..., n + m - 1)`, from the lower left to the upper right.

    It moves in n + m - 1 directions, all of S. A step forms the matrix, O(nm) beside the products of a plain layer, or,
    for large ones, convolves rows in O((n + m) log(n + m)) each. A merge costs O(nm).
    """

    _unsupported = ("rank", "scale", "directions", "train_directions")

    def __init__(self, base: Tensor, kind: Literal["toeplitz"] = "toeplitz") -> None:
        check_real_matrix(base)
        super().__init__(base)
        self.kind = kind
        self.a = nn.Parameter(base.new_zeros(*base.shape[:-2], base.shape[-2] + base.shape[-1] - 1))

    def forward(self, base: Tensor) -> Tensor:
        return base + toeplitz(self.a, base.shape[-2])

    def matmul(self, base: Tensor, x: Tensor) -> Tensor:
        return self.affine(base, x, None)

    def affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        if sum(base.shape[-2:]) < FFT_SIZE or not fft_applies(x, base):
            return linalg.rows_times(x, self(base), bias)
        diagonals = torch.cat([base[..., 0].flip(-1), base[..., 0, 1:]], -1) + self.a
        if base.dim() > 2:
            diagonals = diagonals.unsqueeze(-2)
        y = toeplitz_rows(x, diagonals, base.shape[-2])
        return y if bias is None else y + bias

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.a.zero_()

    def project(self, tensor: Tensor) -> Tensor:
        """The mean along each diagonal."""
        labels = toeplitz_labels(tensor.shape[-2], tensor.shape[-1], tensor.device)
        return toeplitz(label_means(tensor, labels).to(tensor.dtype), tensor.shape[-2])
