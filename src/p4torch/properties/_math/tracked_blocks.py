"""Tracked quantities after a merge of blocks: the inverse and the determinant follow block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch.core.blocks import Blocks
from p4torch.linalg.tracked_inverse import TrackedInverse, TrackedUpdate


@torch.no_grad()
def tracked_block_update(perturbation: Blocks, tracked: TrackedInverse, base: Tensor, order: int) -> TrackedUpdate:
    """A' = L A R, A'⁻¹ = R⁻¹ A⁻¹ L⁻¹, sign and log|det| from those of the blocks, all in float64 up to the rounding of
    what is stored."""
    exact = tracked.current(base).inverse.double()
    for name, right in (("right", False), ("left", True)):
        inverse = perturbation.element(name, torch.float64, inverse=True)
        if inverse is not None:
            exact = inverse.right_multiply(exact) if right else inverse.left_multiply(exact)
    sign, change = perturbation.determinant_change(base, torch.float64)
    candidate, turn = perturbation.exact_candidate(base), perturbation.merge_index
    return tracked.update_to(candidate, exact, sign, change, order, turn, base.dtype)
