"""Fast functions and their readable twins: when the twin is asked instead, and derivatives through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def transformed() -> bool:
    """Whether something rewrites the operations (`torch.compile`, `torch.func`): it wants plain ones."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def twin_gradients(
    twin: Callable[..., tuple[Tensor, ...]],
    needed: Sequence[bool],
    inputs: Sequence[Tensor],
    directions: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """Σ directionsᵀ ∂twin/∂input for each input whose gradient is `needed`, as a differentiable function: what the
    backward pass of a fast function returns where the gradient itself will be differentiated (`create_graph`)."""
    asked = [value for value, wanted in zip(inputs, needed, strict=True) if wanted]
    found = iter(torch.autograd.grad(twin(*inputs), asked, directions, create_graph=True))
    return tuple(next(found) if wanted else None for wanted in needed)
