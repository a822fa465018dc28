"""A run of couplings, linear layers and swaps as one node of the autograd graph.

Points are columns inside, so that all products are of the fastest kind. The two parts of the features are separate
blocks: a coupling replaces the second one, a swap exchanges them; nothing is copied. Whatever the way back needs lives
in buffers that outlive the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from p4torch.flows.fused_coupling import Coupling, Scratch, readable_coupling
from p4torch.flows.fused_linear import Changes, Linear, readable_linear
from p4torch.flows.workspace import Lease, Pool
from p4torch.twins import twin_gradients

Kind = Literal["coupling", "linear", "swap"]

#: Kind of each step, and how many tensors it has.
Plan = tuple[tuple[Kind, int], ...]

#: Workspaces of up to so many numbers are kept for the next step of training.
KEPT = 2**25


class Step(NamedTuple):
    """What a bijection does, for a fused run. The tensors of a "coupling" are log α and its layers, those of a "linear"
    layer A, A⁻¹, U, V and b, see `readable_coupling` and `readable_linear`. A "swap" is one of two parts of equal size.
    `logabsdet` is a constant part of log|det| `()` that the tensors do not tell."""

    kind: Kind
    features: int
    tensors: tuple[Tensor, ...] = ()
    logabsdet: Tensor | None = None


def fusable(steps: Sequence[Step], x: Tensor) -> bool:
    """Whether a run is worth it (it has a coupling), and everything in it fits together, on the CPU."""
    return (
        any(step.kind == "coupling" for step in steps)
        and x.device.type == "cpu"
        and x.numel() > 0
        and x.dtype in (torch.float32, torch.float64)
        and len({step.tensors[2].shape for step in steps if step.kind == "linear"}) < 2
        and all(step.features == x.shape[-1] for step in steps)
        and not torch.is_autocast_enabled("cpu")
        and all(value.dtype == x.dtype and value.device == x.device for step in steps for value in step.tensors)
    )


def fused_run(x: Tensor, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """z `(..., n)` and log|det| `(...)`. Differentiable any number of times (higher derivatives go through the readable
    form)."""
    plan = tuple((step.kind, len(step.tensors)) for step in steps)
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    z, total = _FusedRun.apply(plan, rows, *(value for step in steps for value in step.tensors))  # type: ignore[no-untyped-call]
    known = [step.logabsdet for step in steps if step.logabsdet is not None]
    if known:
        total = total + torch.stack(known).sum().to(total.dtype)
    return z.reshape(x.shape), total.reshape(x.shape[:-1])


def readable_run(plan: Plan, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain operations, of points `(P, n)`, without the constants."""
    total = x.new_zeros(len(x))
    for kind, own in _deal(plan, tensors):
        if kind == "swap":
            x = x.roll(-(x.shape[-1] // 2), -1)
        else:
            x, logabsdet = (readable_coupling if kind == "coupling" else readable_linear)(x, *own)
            total = total + logabsdet
    return x, total


class _FusedRun(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        lease = _lease(plan, x, tensors)
        space = lease.workspace
        a, b = space.parts
        space.x.copy_(x.mT)
        space.bits.zero_()
        alphas = iter(space.alphas(tensors))
        for (_, own), buffers in zip(_deal(plan, tensors), space.steps, strict=True):
            if isinstance(buffers, Coupling):
                b = buffers.ascend(a, b, own, next(alphas), space.bits, space.scratch)
            elif isinstance(buffers, Linear):
                a, b = buffers.ascend(a, b, own)
            else:
                a, b = b, a
        total = space.bits.sum(0).mul_(math.log(2))
        linears = [own for kind, own in _deal(plan, tensors) if kind == "linear"]
        ctx.changes = Changes(linears) if linears else None
        if ctx.changes is not None:
            total += ctx.changes.total()
        ctx.save_for_backward(x, *tensors)
        ctx.lease, ctx.plan = lease, plan
        return torch.cat([a, b]).mT, total

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        plan: Plan = ctx.plan
        if torch.is_grad_enabled():  # create_graph: the gradient itself must be differentiable
            inputs = (x, *tensors)
            return None, *twin_gradients(
                lambda *values: readable_run(plan, *values), ctx.needs_input_grad[1:], inputs, (grad_z, grad_total)
            )
        space = ctx.lease.workspace
        kept = len(space.parts[0])
        grad = grad_z.mT.clone(memory_format=torch.contiguous_format)
        a, b = grad[:kept], grad[kept:]
        alphas = iter(space.alphas(tensors)[::-1])
        more = iter(ctx.changes.gradients(grad_total.sum())[::-1] if ctx.changes is not None else [])
        found: list[Tensor | None] = []
        for (_, own), buffers in zip(_deal(plan, tensors)[::-1], space.steps[::-1], strict=True):
            if isinstance(buffers, Coupling):
                found += buffers.descend(a, b, grad_total, own, next(alphas), space.scratch)
            elif isinstance(buffers, Linear):
                a, b, gradients = buffers.descend(a, b, own, *next(more))
                found += gradients
            else:
                a, b = b, a
        grad_x = torch.cat([a, b]).mT if ctx.needs_input_grad[1] else None
        return None, grad_x, *found[::-1]


_KINDS: dict[Kind, type[Coupling | Linear]] = {"coupling": Coupling, "linear": Linear}


class _Workspace:
    """The buffers of all steps of a run of the points `x` `(P, n)`."""

    def __init__(self, plan: Plan, x: Tensor, tensors: Sequence[Tensor]) -> None:
        dealt = _deal(plan, tensors)
        self.steps = [_KINDS[kind](x, own) if kind in _KINDS else None for kind, own in dealt]
        self.scratch = Scratch(next(step for step in self.steps if isinstance(step, Coupling)))
        self.bits = torch.empty_like(self.scratch.raw)
        self.x = x.new_empty(x.shape[1], x.shape[0])
        kept = x.shape[1] - x.shape[1] // 2
        self.parts = self.x[:kept], self.x[kept:]
        starts = [sum(count for _, count in plan[:index]) for index in range(len(plan))]
        self.log_alphas = [start for start, (kind, _) in zip(starts, plan, strict=True) if kind == "coupling"]

    def alphas(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """α of each coupling."""
        return list(torch.stack([tensors[index] for index in self.log_alphas]).exp().unbind(0))


_POOL: Pool[_Workspace] = Pool()


def _lease(plan: Plan, x: Tensor, tensors: Sequence[Tensor]) -> Lease[_Workspace]:
    shapes = tuple(value.shape for value in tensors)
    numbers = 4 * x.shape[0] * sum(shape[-2] for shape in shapes if len(shape) > 1)
    return _POOL.lease((plan, x.shape, x.dtype, shapes), lambda: _Workspace(plan, x, tensors), numbers <= KEPT)


def _deal(plan: Plan, tensors: Sequence[Tensor]) -> list[tuple[Kind, Sequence[Tensor]]]:
    """The kind of each step with its own tensors."""
    dealt, start = [], 0
    for kind, count in plan:
        dealt.append((kind, tensors[start : start + count]))
        start += count
    return dealt
