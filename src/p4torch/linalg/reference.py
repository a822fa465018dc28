"""Fast functions and their reference implementations: when the reference is used, and derivatives through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether something rewrites the operations (`torch.compile`, `torch.func`) or carries tangents along (forward-mode
    derivatives): it wants plain ones."""
    return (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def exporting() -> bool:
    """Whether `torch.export` looks on: what is computed may then not depend on the size of a batch, which it leaves
    open."""
    return torch.compiler.is_exporting() if hasattr(torch.compiler, "is_exporting") else torch.compiler.is_compiling()


def reference_wanted(*directions: Tensor | None) -> bool:
    """Whether a backward pass that gets these gradients is to go through the reference: its result will be
    differentiated (`create_graph`), or they are many at once (`is_grads_batched`, `torch.func.vmap`), for which no
    buffers are there.
    """
    return torch.is_grad_enabled() or any(_batched(g) for g in directions if g is not None)


def _batched(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def reference_gradients(
    reference: Callable[..., Any],
    needed: Sequence[bool],
    inputs: Sequence[Tensor | None],
    directions: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Σ directionsᵀ ∂reference/∂input for each input whose gradient is `needed`: what the backward pass of a fast
    function returns where the reference is wanted, differentiable if `create_graph` asks for that. The reference
    returns a tensor or a tuple; None as a direction stands for 0.

    The derivatives are partial ones, also where inputs depend on each other or are the same tensor: they are taken with
    respect to an alias of each, behind which the graph of the input goes on for further derivatives.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [
            value.view_as(value) if wanted and value is not None else value
            for value, wanted in zip(inputs, needed, strict=True)
        ]
        outputs = reference(*aliases)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(out, g) for out, g in zip(outputs, directions, strict=True) if g is not None and out.requires_grad]
    wanted_inputs = [value for value, wanted in zip(aliases, needed, strict=True) if wanted and value is not None]
    roots, weights = [out for out, _ in pairs], [g for _, g in pairs]
    result = iter(torch.autograd.grad(roots, wanted_inputs, weights, create_graph=create_graph, materialize_grads=True))
    return tuple(next(result) if wanted else None for wanted in needed)


def once_differentiable(gradient: Tensor, error: Exception, *sources: Tensor) -> Tensor:
    """A gradient that depends on `sources`, as the backward pass of a function without second derivatives returns it:
    where it is differentiated, the error is raised, and it is not taken for a constant."""
    if not torch.is_grad_enabled():
        return gradient
    result: Tensor = _OnceDifferentiable.apply(gradient, error, *sources)  # type: ignore[no-untyped-call]
    return result


class _OnceDifferentiable(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, error: Exception, *sources: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.error = inputs[1]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise ctx.error
