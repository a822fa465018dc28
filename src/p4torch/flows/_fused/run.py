"""A run of couplings, linear layers and swaps as one node of the autograd graph, drawn in `p4torch.flows._fused`.

Points are columns inside, so that all products are of the fastest kind. Whatever the backward pass needs lives in
buffers that outlive the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from p4torch.flows._context import joint_batch
from p4torch.flows._fused.coupling import (
    FusedCoupling,
    Scratch,
    coupling_inverse_reference,
    coupling_reference,
    layer_widths,
    with_context,
)
from p4torch.flows._fused.dense import FusedDense, dense_reference, triangular_inverses, triangular_weights
from p4torch.flows._fused.linear import FusedLinears, inverse_tensors, linear_inverse_reference, linear_reference
from p4torch.flows._fused.workspace import Pool, bytes_of
from p4torch.linalg.reference import reference_gradients, reference_wanted

Kind = Literal[
    "coupling", "coupling_inverse", "linear", "linear_inverse", "triangular", "triangular_inverse", "dense", "swap"
]

#: The couplings, with the sign of s in log|det|.
_SIGNS: dict[Kind, int] = {"coupling": 1, "coupling_inverse": -1}

#: Kind of each step, and how many tensors it has.
Plan = tuple[tuple[Kind, int], ...]

#: The linear layers that a run consists of, and as which of them others take part.
_LINEAR: tuple[Kind, ...] = ("linear", "dense")
_FORMED: dict[Kind, Kind] = {
    "linear": "linear",
    "linear_inverse": "linear",
    "triangular": "dense",
    "triangular_inverse": "dense",
}

_SHAPE, _DTYPE, _IS_CPU = attrgetter("shape"), attrgetter("dtype"), attrgetter("is_cpu")


class Step(NamedTuple):
    """What a bijection does, for a fused run. The tensors of a "coupling" are log α and its layers, those of a "linear"
    layer A, A⁻¹, U, V and b; their inverses have the same: see `coupling_reference` and `linear_reference`. Those of a
    "triangular" one, or its inverse, are A, A⁻¹, B and b; it becomes a "dense" one of W and b (`triangular_weights`).
    A "swap" is one of two parts of equal size. `logabsdet` `()` is the constant part of log|det|, that of A; `gain` is
    g, the factor of B. A conditional coupling has a `context` `(..., c)`."""

    kind: Kind
    features: int
    tensors: tuple[Tensor, ...] = ()
    logabsdet: Tensor | None = None
    gain: float = 1.0
    context: Tensor | None = None


def fusable(steps: Sequence[Step], x: Tensor) -> bool:
    """Whether a run is worth it (it has a coupling), and everything in it fits together, on the CPU. Couplings share
    buffers, so their layers are of the same widths; linear layers are of one rank, or all triangular."""
    linears = {(_FORMED[step.kind], step.tensors[2].shape) for step in steps if step.kind in _FORMED}
    couplings = {tuple(layer_widths(step.tensors)) for step in steps if step.kind in _SIGNS}
    contexts = [step.context for step in steps if step.context is not None]
    tensors = [*contexts, *(value for step in steps for value in step.tensors)]
    return (
        len(couplings) == 1
        and x.is_cpu
        and all(points.numel() > 0 for points in (x, *contexts))
        and x.dtype in (torch.float32, torch.float64)
        and len(linears) < 2
        and {step.features for step in steps} == {x.shape[-1]}
        and not torch.is_autocast_enabled("cpu")
        and set(map(_DTYPE, tensors)) == {x.dtype}
        and all(map(_IS_CPU, tensors))
    )


def fused_run(x: Tensor, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """z `(..., n)` and log|det| `(...)`, of the batch that points and contexts have together. Differentiable any number
    of times (higher derivatives go through `run_reference`)."""
    for step in steps:
        if step.context is not None:
            x = x.expand(*joint_batch(x.shape[:-1], step.context), x.shape[-1])
    steps, changes = _formed([_plain(step, x.shape[:-1]) for step in steps])
    plan = tuple((step.kind, len(step.tensors)) for step in steps)
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    z, total = _FusedRun.apply(plan, rows, *(value for step in steps for value in step.tensors))  # type: ignore[no-untyped-call]
    constants = [*changes, *(step.logabsdet for step in steps if step.logabsdet is not None)]
    if constants:
        total = total + torch.stack(constants).sum().to(total.dtype)
    return z.reshape(x.shape), total.reshape(x.shape[:-1])


def _plain(step: Step, batch: torch.Size) -> Step:
    """The step as the node knows it: the inverse of a linear layer is a linear layer, and a context acts on the bias of
    a coupling. Autograd sees both."""
    if step.kind == "linear_inverse":
        return step._replace(kind="linear", tensors=inverse_tensors(*step.tensors))
    if step.context is None:
        return step
    context = step.context.expand(*batch, step.context.shape[-1]).reshape(batch.numel(), step.context.shape[-1])
    return step._replace(tensors=with_context(context, step.features - step.features // 2, *step.tensors))


def _formed(steps: Sequence[Step]) -> tuple[list[Step], list[Tensor]]:
    """The steps with all triangular layers as dense ones, and what that adds to log|det|, `()` each."""
    formed, changes = list(steps), []
    for kind, function in _WEIGHTS.items():
        places = [index for index, step in enumerate(steps) if step.kind == kind]
        if places:
            tensors, change = function(
                [steps[index].tensors for index in places], [steps[index].gain for index in places]
            )
            changes.append(change)
            for index, values in zip(places, tensors, strict=True):
                formed[index] = steps[index]._replace(kind="dense", tensors=values)
    return formed, changes


_WEIGHTS: dict[Kind, Callable[..., tuple[list[tuple[Tensor, ...]], Tensor]]] = {
    "triangular": triangular_weights,
    "triangular_inverse": triangular_inverses,
}


def run_reference(plan: Plan, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain operations, of points `(P, n)`, without the constants."""
    total = x.new_zeros(len(x))
    for kind, step_tensors in _by_step(plan, tensors):
        if kind == "swap":
            x = x.roll(-(x.shape[-1] // 2), -1)
        else:
            x, logabsdet = _REFERENCES[kind](x, *step_tensors)
            total = total + logabsdet
    return x, total


_REFERENCES: dict[Kind, Callable[..., tuple[Tensor, Tensor]]] = {
    "coupling": coupling_reference,
    "coupling_inverse": coupling_inverse_reference,
    "linear": linear_reference,
    "linear_inverse": linear_inverse_reference,
    "dense": dense_reference,
}


class _FusedRun(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        steps = _by_step(plan, tensors)
        key = (plan, x.shape, x.dtype, *map(_SHAPE, tensors))
        lease = _POOL.lease(key, lambda: _Workspace(steps, x))
        space, linears = lease.workspace, lease.workspace.linears
        a, b = space.parts
        space.x.copy_(x.mT)
        space.log2_total.zero_()
        alphas = torch.stack([values[0] for kind, values in steps if kind in _SIGNS]).exp()
        factors = iter((space.signs * alphas / math.log(2)).unbind(0))
        ctx.logdets = linears.prepare([values for kind, values in steps if kind in _LINEAR]) if linears else None
        linear = iter(range(len(plan)))
        for (kind, values), coupling in zip(steps, space.couplings, strict=True):
            if coupling is not None:
                b = coupling.forward(a, b, values, next(factors), space.log2_total, space.scratch)
            elif linears is not None and kind in _LINEAR:
                a, b = linears.forward(next(linear), a, b)
            else:
                a, b = b, a
        total = space.log2_total.sum(0).mul_(math.log(2))
        if ctx.logdets is not None:
            total += ctx.logdets.total()
        ctx.save_for_backward(x, *tensors)
        ctx.lease, ctx.plan, ctx.alphas = lease, plan, alphas
        return torch.cat([a, b]).mT, total

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        plan: Plan = ctx.plan
        if reference_wanted(grad_z, grad_total):
            inputs = (x, *tensors)
            return None, *reference_gradients(
                lambda *values: run_reference(plan, *values), ctx.needs_input_grad[1:], inputs, (grad_z, grad_total)
            )
        space: _Workspace = ctx.lease.workspace
        linears, kept = space.linears, len(space.parts[0])
        whole: Tensor | None = grad_z.mT.clone(memory_format=torch.contiguous_format)
        a, b = whole[:kept], whole[kept:]  # type: ignore[index]
        alphas = iter(ctx.alphas.unbind(0)[::-1])
        counts = [count for kind, count in plan if kind in _LINEAR]
        linear = iter(range(len(counts) - 1, -1, -1))
        of_couplings: list[list[Tensor | None]] = []  # the last one first
        for (kind, values), coupling in zip(_by_step(plan, tensors)[::-1], space.couplings[::-1], strict=True):
            if coupling is not None:
                of_couplings.append(coupling.backward(a, b, grad_total, values, next(alphas), space.scratch))
            elif linears is not None and kind in _LINEAR:
                whole, (a, b) = linears.backward(next(linear), torch.cat([a, b]) if whole is None else whole)
            else:
                a, b, whole = b, a, None
        of_linears = iter(linears.gradients(ctx.logdets, grad_total, counts) if linears is not None else [])
        sources: dict[Kind, Iterator[list[Tensor | None]]] = dict.fromkeys(_SIGNS, iter(of_couplings[::-1]))
        sources |= dict.fromkeys(_LINEAR, of_linears)
        gradients = [value for kind, _ in plan if kind in sources for value in next(sources[kind])]
        grad_x = torch.cat([a, b]).mT if ctx.needs_input_grad[1] else None
        return None, grad_x, *gradients


class _Workspace:
    """The buffers of all steps of a run of the points `x` `(P, n)`."""

    def __init__(self, steps: Sequence[tuple[Kind, Sequence[Tensor]]], x: Tensor) -> None:
        self.couplings = [
            FusedCoupling(x, values, kind == "coupling_inverse") if kind in _SIGNS else None for kind, values in steps
        ]
        self.signs = x.new_tensor([_SIGNS[kind] for kind, _ in steps if kind in _SIGNS])
        layers = {kind: [values for key, values in steps if key == kind] for kind in _LINEAR}
        self.linears: FusedLinears | FusedDense | None = None
        if layers["linear"] or layers["dense"]:
            self.linears = FusedLinears(x, layers["linear"]) if layers["linear"] else FusedDense(x, layers["dense"])
        self.scratch = Scratch(x, next(layer_widths(values) for kind, values in steps if kind in _SIGNS))
        self.log2_total = torch.empty_like(self.scratch.raw)
        self.x = x.new_empty(x.shape[1], x.shape[0])
        kept = x.shape[1] - x.shape[1] // 2
        self.parts = self.x[:kept], self.x[kept:]
        self._join_outputs([kind for kind, _ in steps])
        owners = [self.scratch, *(one for one in (*self.couplings, self.linears) if one is not None)]
        self.bytes = bytes_of([self.x, self.log2_total, *(buffer for owner in owners for buffer in owner.buffers())])

    def _join_outputs(self, kinds: Sequence[Kind]) -> None:
        """A coupling right before a linear layer writes b' into the buffer that the layer reads."""
        linear = 0
        for kind, before in zip(kinds, [None, *self.couplings], strict=False):
            if self.linears is not None and kind in _LINEAR:
                if before is not None:
                    before.out = self.linears.parts[linear][1]
                linear += 1


_POOL: Pool[_Workspace] = Pool()


def _by_step(plan: Plan, tensors: Sequence[Tensor]) -> list[tuple[Kind, Sequence[Tensor]]]:
    """The kind of each step with its tensors."""
    steps, start = [], 0
    for kind, count in plan:
        steps.append((kind, tensors[start : start + count]))
        start += count
    return steps
