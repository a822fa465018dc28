"""Circulant matrices: convolutions on a ring, with inverse and determinant by FFT."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.properties._math.diagonals import circulant, circulant_labels, circulant_rows, fft_applies, label_means
from p4torch.properties._math.shapes import check_real_matrix, check_square
from p4torch.properties.linear_subspace import LinearSubspace

#: From this size on an FFT is faster than the product with the matrix (CPU, 256 rows; even there for a prime size).
FFT_SIZE = 256


class Circulant(LinearSubspace, kinds=("circulant",)):
    """S = {A `(..., n, n)` : A_ij = a_(i-j mod n)}, R_B(A) = A + the circulant of a, the first column, `(..., n)`.

    It moves in n directions, all of S. The eigenvalues are λ = FFT(column): log|det| = Σ log|λ_j|, R_B(A)⁻¹ has
    eigenvalues 1/λ_j, and sign det is that of the real ones, λ_0 and, for even n, λ_(n/2). Nothing is tracked: all are
    computed anew from the column in O(n log n), in float64, and rows are multiplied and solved in O(n log n) each; the
    matrix itself takes O(n²). Nothing keeps λ_j from 0, either: there det = 0. A merge costs O(n²).
    """

    _unsupported = ("rank", "scale", "directions", "train_directions")

    def __init__(self, base: Tensor, kind: Literal["circulant"] = "circulant") -> None:
        check_real_matrix(base)
        check_square(base, f"a {kind} matrix")
        super().__init__(base)
        self.a = nn.Parameter(base.new_zeros(base.shape[:-1]))

    # --- R_B and what follows from it ---------------------------------------------------------------------------------

    def forward(self, base: Tensor) -> Tensor:
        return base + circulant(self.a)

    def matmul(self, base: Tensor, x: Tensor) -> Tensor:
        return self.affine(base, x, None)

    def affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        if base.shape[-1] < FFT_SIZE or not fft_applies(x, base):
            return linalg.rows_times(x, self(base), bias)
        y = circulant_rows(x, self._broadcast_to_rows(torch.fft.rfft(self._column(base))))
        return y if bias is None else y + bias

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            rows = linalg.at_least_single(y)
            dtype = torch.complex64 if rows.dtype == torch.float32 else torch.complex128
            inverted = self._broadcast_to_rows(1 / self._eigenvalues(base)).to(dtype)
            return circulant_rows(rows, inverted).to(base.dtype)

    def inverse(self, base: Tensor) -> Tensor:
        return circulant(torch.fft.irfft(1 / self._eigenvalues(base), base.shape[-1])).to(base.dtype)

    def logabsdet(self, base: Tensor) -> Tensor:
        logarithms = self._eigenvalues(base).abs().log()
        twice = logarithms[..., 1 : (base.shape[-1] + 1) // 2]  # each stands for a conjugate pair
        return (logarithms.sum(-1) + twice.sum(-1)).to(base.dtype)

    def sign(self, base: Tensor) -> Tensor:
        real = self._eigenvalues(base).detach().real
        sign = real[..., 0].sign()
        return (sign if base.shape[-1] % 2 else sign * real[..., -1].sign()).to(base.dtype)

    def _column(self, base: Tensor) -> Tensor:
        """The first one of R_B(A)."""
        return base[..., 0] + self.a

    def _eigenvalues(self, base: Tensor) -> Tensor:
        """λ_0, ..., λ_(n//2), the others being their conjugates, in complex128."""
        return torch.fft.rfft(self._column(base).double())

    def _broadcast_to_rows(self, eigenvalues: Tensor) -> Tensor:
        """To meet rows `(..., m, n)`."""
        return eigenvalues if eigenvalues.dim() == 1 else eigenvalues.unsqueeze(-2)

    # --- B, and the set -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.a.zero_()

    def project(self, tensor: Tensor) -> Tensor:
        """The mean along each diagonal around."""
        labels = circulant_labels(tensor.shape[-1], tensor.device)
        return circulant(label_means(tensor, labels).to(tensor.dtype))
