"""A run of couplings, linear layers and swaps as one node of the autograd graph.

Points are columns inside, so that all products are of the fastest kind. The two parts of the features are separate
blocks: a coupling replaces the second one, a swap exchanges them; nothing is copied. Whatever the way back needs lives
in buffers that outlive the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from p4torch.flows._fused.coupling import Coupling, Scratch, coupling_reference, layer_widths, uncoupling_reference
from p4torch.flows._fused.linear import Linears, inverted, linear_reference, unlinear_reference
from p4torch.flows._fused.workspace import Lease, Pool, bytes_of
from p4torch.linalg.reference import reference_gradients, reference_wanted

Kind = Literal["coupling", "uncoupling", "linear", "unlinear", "swap"]

_COUPLINGS: dict[Kind, int] = {"coupling": 1, "uncoupling": -1}  # and the sign of s

#: Kind of each step, and how many tensors it has.
Plan = tuple[tuple[Kind, int], ...]

_SHAPE, _DTYPE, _IS_CPU = attrgetter("shape"), attrgetter("dtype"), attrgetter("is_cpu")


class Step(NamedTuple):
    """What a bijection does, for a fused run. The tensors of a "coupling" are log α and its layers, those of a "linear"
    layer A, A⁻¹, U, V and b; their inverses, "uncoupling" and "unlinear", have the same: see `coupling_reference`,
    `linear_reference` and their likes. A "swap" is one of two parts of equal size.
    `logabsdet` is a constant part of log|det| `()` that the tensors do not tell."""

    kind: Kind
    features: int
    tensors: tuple[Tensor, ...] = ()
    logabsdet: Tensor | None = None


def fusable(steps: Sequence[Step], x: Tensor) -> bool:
    """Whether a run is worth it (it has a coupling), and everything in it fits together, on the CPU. Couplings share
    buffers, so they are of one shape; linear layers are of one rank."""
    couplings = {tuple(map(_SHAPE, step.tensors)) for step in steps if step.kind in _COUPLINGS}
    tensors = [value for step in steps for value in step.tensors]
    return (
        len(couplings) == 1
        and x.is_cpu
        and x.numel() > 0
        and x.dtype in (torch.float32, torch.float64)
        and len({step.tensors[2].shape for step in steps if step.kind in ("linear", "unlinear")}) < 2
        and {step.features for step in steps} == {x.shape[-1]}
        and not torch.is_autocast_enabled("cpu")
        and set(map(_DTYPE, tensors)) == {x.dtype}
        and all(map(_IS_CPU, tensors))
    )


def fused_run(x: Tensor, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """z `(..., n)` and log|det| `(...)`. Differentiable any number of times (higher derivatives go through the readable
    form)."""
    steps = [
        step._replace(kind="linear", tensors=inverted(*step.tensors)) if step.kind == "unlinear" else step
        for step in steps
    ]
    plan = tuple((step.kind, len(step.tensors)) for step in steps)
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    z, total = _FusedRun.apply(plan, rows, *(value for step in steps for value in step.tensors))  # type: ignore[no-untyped-call]
    known = [step.logabsdet for step in steps if step.logabsdet is not None]
    if known:
        total = total + torch.stack(known).sum().to(total.dtype)
    return z.reshape(x.shape), total.reshape(x.shape[:-1])


def run_reference(plan: Plan, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain operations, of points `(P, n)`, without the constants."""
    total = x.new_zeros(len(x))
    for kind, own in _deal(plan, tensors):
        if kind == "swap":
            x = x.roll(-(x.shape[-1] // 2), -1)
        else:
            x, logabsdet = _READABLE[kind](x, *own)
            total = total + logabsdet
    return x, total


_READABLE: dict[Kind, Callable[..., tuple[Tensor, Tensor]]] = {
    "coupling": coupling_reference,
    "uncoupling": uncoupling_reference,
    "linear": linear_reference,
    "unlinear": unlinear_reference,
}


class _FusedRun(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        dealt = _deal(plan, tensors)
        lease = _lease(plan, x, tensors, dealt)
        space, linears = lease.workspace, lease.workspace.linears
        a, b = space.parts
        space.x.copy_(x.mT)
        space.bits.zero_()
        alphas = torch.stack([tensors[index] for index in space.log_alphas]).exp()
        most = iter((space.signs * alphas / math.log(2)).unbind(0))
        ctx.changes = linears.prepare([own for kind, own in dealt if kind == "linear"]) if linears else None
        linear = iter(range(len(plan)))
        for (kind, own), coupling in zip(dealt, space.couplings, strict=True):
            if coupling is not None:
                b = coupling.ascend(a, b, own, next(most), space.bits, space.scratch)
            elif linears is not None and kind == "linear":
                a, b = linears.ascend(next(linear), a, b)
            else:
                a, b = b, a
        total = space.bits.sum(0).mul_(math.log(2))
        if ctx.changes is not None:
            total += ctx.changes.total()
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
        counts = [count for kind, count in plan if kind == "linear"]
        linear = iter(range(len(counts) - 1, -1, -1))
        found: list[list[Tensor | None]] = []
        for (kind, own), coupling in zip(_deal(plan, tensors)[::-1], space.couplings[::-1], strict=True):
            if coupling is not None:
                found.append(coupling.descend(a, b, grad_total, own, next(alphas), space.scratch))
            elif linears is not None and kind == "linear":
                whole, (a, b) = linears.descend(next(linear), torch.cat([a, b]) if whole is None else whole)
            else:
                a, b, whole = b, a, None
        of_couplings = iter(found[::-1])
        of_linears = iter(linears.gradients(ctx.changes, grad_total, counts) if linears is not None else [])
        sources: dict[Kind, Iterator[list[Tensor | None]]] = dict.fromkeys(_COUPLINGS, of_couplings)
        sources["linear"] = of_linears
        gradients = [value for kind, _ in plan if kind in sources for value in next(sources[kind])]
        grad_x = torch.cat([a, b]).mT if ctx.needs_input_grad[1] else None
        return None, grad_x, *gradients


class _Workspace:
    """The buffers of all steps of a run of the points `x` `(P, n)`."""

    def __init__(self, plan: Plan, x: Tensor, dealt: Sequence[tuple[Kind, Sequence[Tensor]]]) -> None:
        self.couplings = [Coupling(x, own, kind == "uncoupling") if kind in _COUPLINGS else None for kind, own in dealt]
        self.signs = x.new_tensor([_COUPLINGS[kind] for kind, _ in dealt if kind in _COUPLINGS])
        layers = [own for kind, own in dealt if kind == "linear"]
        self.linears = Linears(x, layers) if layers else None
        self.scratch = Scratch(x, next(layer_widths(own) for kind, own in dealt if kind in _COUPLINGS))
        self.bits = torch.empty_like(self.scratch.raw)
        self.x = x.new_empty(x.shape[1], x.shape[0])
        kept = x.shape[1] - x.shape[1] // 2
        self.parts = self.x[:kept], self.x[kept:]
        starts = [sum(count for _, count in plan[:index]) for index in range(len(plan))]
        self.log_alphas = [start for start, (kind, _) in zip(starts, plan, strict=True) if kind in _COUPLINGS]
        self._join(plan)
        owners = [self.scratch, *(one for one in (*self.couplings, self.linears) if one is not None)]
        self.bytes = bytes_of([self.x, self.bits, *(buffer for owner in owners for buffer in owner.buffers())])

    def _join(self, plan: Plan) -> None:
        """A coupling before a linear layer writes where that will read."""
        linear = 0
        for (kind, _), before in zip(plan, [None, *self.couplings], strict=False):
            if self.linears is not None and kind == "linear":
                if before is not None:
                    before.out = self.linears.parts[linear][1]
                linear += 1


_POOL: Pool[_Workspace] = Pool()


def _lease(
    plan: Plan, x: Tensor, tensors: Sequence[Tensor], dealt: Sequence[tuple[Kind, Sequence[Tensor]]]
) -> Lease[_Workspace]:
    key = (plan, x.shape, x.dtype, *map(_SHAPE, tensors))
    return _POOL.lease(key, lambda: _Workspace(plan, x, dealt))


def _deal(plan: Plan, tensors: Sequence[Tensor]) -> list[tuple[Kind, Sequence[Tensor]]]:
    """The kind of each step with its own tensors."""
    dealt, start = [], 0
    for kind, count in plan:
        dealt.append((kind, tensors[start : start + count]))
        start += count
    return dealt
