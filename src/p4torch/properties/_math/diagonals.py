"""Matrices that are constant along diagonals, from and to their diagonals, and their products with rows by FFT."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg


def toeplitz(diagonals: Tensor, rows: int) -> Tensor:
    """`(..., n, m)` from its diagonals `(..., n + m - 1)`, the first at the lower left: A_ij = d_(n-1-i+j)."""
    return diagonals.unfold(-1, diagonals.shape[-1] - rows + 1, 1).flip(-2)


def circulant(column: Tensor) -> Tensor:
    """`(..., n, n)` from its first column `(..., n)`: A_ij = a_(i-j mod n)."""
    around = column.flip(-1)  # a_(n-1), ..., a_0
    return toeplitz(torch.cat([around, around[..., :-1]], -1), column.shape[-1])


def toeplitz_labels(rows: int, columns: int, device: torch.device) -> Tensor:
    """`(n, m)`: which diagonal an entry lies on, as `toeplitz` counts them."""
    down, across = torch.arange(rows, device=device), torch.arange(columns, device=device)
    return rows - 1 - down[:, None] + across


def circulant_labels(size: int, device: torch.device) -> Tensor:
    """`(n, n)`: which entry of the first column an entry equals."""
    around = torch.arange(size, device=device)
    return (around[:, None] - around) % size


def label_means(matrix: Tensor, labels: Tensor) -> Tensor:
    """The mean of the entries with each label, `(..., labels)`, in float64: the coordinates of the nearest matrix that
    is constant on labels. Exact, if this one is: what is averaged are deviations from one entry each."""
    flat, exact = labels.flatten(), matrix.double().flatten(-2)
    counts = flat.bincount()
    chosen = torch.empty_like(counts).scatter_(0, flat, torch.arange(flat.numel(), device=flat.device))
    anchor = exact[..., chosen]
    deviations = exact - anchor[..., flat]
    total = torch.zeros_like(anchor).index_add_(-1, flat, deviations)
    return anchor + total / counts


def toeplitz_rows(x: Tensor, diagonals: Tensor, rows: int) -> Tensor:
    """x Aᵀ `(..., n)` for rows x `(..., m)` and the diagonals of A, `(n + m - 1,)` or `(..., 1, n + m - 1)`: a
    convolution, of a length that is fast. O((n + m) log(n + m)) a row."""
    if x.numel() == 0:  # an FFT of nothing is an error
        return x[..., :1] * diagonals[..., :rows]
    size = next_fast_length(diagonals.shape[-1])
    product = torch.fft.rfft(x, size) * torch.fft.rfft(diagonals.flip(-1), size)
    return torch.fft.irfft(product, size)[..., x.shape[-1] - 1 :][..., :rows]


def circulant_rows(x: Tensor, eigenvalues: Tensor) -> Tensor:
    """x Aᵀ for rows x `(..., n)`, with the eigenvalues rfft(a) `(..., n//2 + 1)` of A. O(n log n) a row."""
    if x.numel() == 0:  # an FFT of nothing is an error
        return x * eigenvalues.real[..., :1]
    return torch.fft.irfft(torch.fft.rfft(x) * eigenvalues, x.shape[-1])


def next_fast_length(size: int) -> int:
    """The least number from `size` on without prime factors above 5."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def fft_applies(x: Tensor, base: Tensor) -> bool:
    """Whether an FFT takes these rows as they are, and may: no short dtypes, no autocast."""
    exact = base.dtype in (torch.float32, torch.float64) and x.dtype == base.dtype
    return exact and not linalg.autocasts(base.device)
