"""Fast functions and their readable twins: when the twin is asked instead, and derivatives through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def transformed() -> bool:
    """Whether something rewrites the operations (`torch.compile`, `torch.func`): it wants plain ones."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def twin_gradients(
    twin: Callable[..., Any],
    needed: Sequence[bool],
    inputs: Sequence[Tensor | None],
    directions: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Σ directionsᵀ ∂twin/∂input for each input whose gradient is `needed`, as a differentiable function: what the
    backward pass of a fast function returns where the gradient itself will be differentiated (`create_graph`). The twin
    returns a tensor or a tuple; None as a direction stands for 0."""
    outputs = twin(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(out, g) for out, g in zip(outputs, directions, strict=True) if g is not None and out.requires_grad]
    asked = [value for value, wanted in zip(inputs, needed, strict=True) if wanted and value is not None]
    roots, weights = [out for out, _ in pairs], [g for _, g in pairs]
    found = iter(torch.autograd.grad(roots, asked, weights, create_graph=True, allow_unused=True))
    return tuple(next(found) if wanted else None for wanted in needed)
