"""Norms of convolutions by other ways than the package's: the whole matrix, power iteration, FFT."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unrolled(layer: nn.Module, channels: int, size: tuple[int, ...]) -> Tensor:
    """The matrix of a layer, as a map of one image, in float64; without its bias."""
    pixels = channels * torch.Size(size).numel()
    images = torch.eye(pixels, dtype=torch.float64).reshape(pixels, channels, *size)
    with torch.no_grad():
        return (layer(images) - layer(torch.zeros_like(images[:1]))).flatten(1).mT


def true_norm(layer: nn.Module, channels: int, size: tuple[int, ...]) -> float:
    """By SVD of the matrix."""
    return float(torch.linalg.matrix_norm(unrolled(layer, channels, size), ord=2))


def iterated_norm(layer: nn.Conv2d, size: tuple[int, ...], steps: int) -> float:
    """By power iteration, from below."""
    x = torch.randn(1, layer.in_channels, *size, dtype=torch.float64)
    norm = 0.0
    for _ in range(steps):
        x = (x / torch.linalg.vector_norm(x)).requires_grad_()
        y = layer(x)
        if layer.bias is not None:
            y = y - layer.bias[:, None, None]
        norm = float(torch.linalg.vector_norm(y.detach()))
        (x,) = torch.autograd.grad(y, x, y.detach())
    return norm


def supremum(weight: Tensor, points: int = 128) -> float:
    """Of a kernel `(out, in, k, k)` at stride 1, without groups, by FFT on many points: from below."""
    symbols = torch.fft.fft2(weight.detach().double(), s=(points, points)).permute(2, 3, 0, 1)
    return float(torch.linalg.matrix_norm(symbols, ord=2).max())
