"""Frames of a molecule, `(..., atoms, 3)` in nm: what is asked of them, and how they are laid out for work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p4torch.errors import ArgumentError


def components_first(x: Tensor) -> Tensor:
    """`(..., atoms, 3)` as `(3, atoms, batch)`: each step of geometry then works on long contiguous rows."""
    return x.reshape(-1, *x.shape[-2:]).permute(2, 1, 0).contiguous()


def components_last(x: Tensor, leading: Sequence[int]) -> Tensor:
    """`(3, atoms, batch)` as `(*leading, atoms, 3)`."""
    return x.permute(2, 1, 0).reshape(*leading, x.shape[1], 3)


def resampled_indices(cumulated: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """`(count,)`: places drawn with replacement, each as often as its weight says; the weights cumulated, float64."""
    places = torch.rand(count, generator=generator, dtype=torch.float64) * cumulated[-1]
    return torch.searchsorted(cumulated, places, right=True).clamp(max=len(cumulated) - 1)


def normalize_weights(weights: Tensor | None, frames: int, like: Tensor) -> Tensor:
    """Weights `(frames,)` that sum to 1, in float64; equal ones by default.

    Raises:
        ArgumentError: there are not as many as frames, or they are negative, not finite, or all zero.
    """
    if weights is None:
        return torch.full((frames,), 1 / max(frames, 1), dtype=torch.float64, device=like.device)
    if weights.shape != (frames,):
        raise ArgumentError.of("weights", f"of shape ({frames},)", tuple(weights.shape))
    weights = weights.detach().to(like.device, torch.float64)
    if not (bool(weights.isfinite().all()) and bool((weights >= 0).all()) and bool(weights.any())):
        raise ArgumentError.of("weights", "finite, not negative and not all zero", weights.tolist()[:10])
    return weights / weights.sum()
