"""The table of hand-written functions: each with its reference implementation, as a function of one tensor that all
its inputs are made from. Some are one and the same tensor, others depend on each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from p4torch.flows._fused import chain as fused, knots, run as fused_run
from p4torch.linalg import fused_linear, matrix_groups as algebras, relative, triangular
from p4torch.linalg.block_diagonal import BlockDiagonal, apply_to_rows_reference
from p4torch.linalg.reference import transformed
from p4torch.properties._math import cayley, simplex

Outputs = Tensor | tuple[Tensor, ...]
Function = Callable[..., Outputs]

#: Sizes of the matrices and of the factors, and so of the tensor that all is made from.
N, K = 4, 2


@dataclass(frozen=True)
class Fused:
    """A fast function, its twin, and what makes the inputs of both from a tensor `(N, K)`."""

    fast: Function
    readable: Function
    inputs: Callable[[Tensor], tuple[Tensor | None, ...]]


def constant(*shape: int) -> Tensor:
    """Fixed numbers between -1/2 and 1/2; not random ones, which `vmap` refuses to draw."""
    return torch.arange(1, prod(shape) + 1, dtype=torch.float64).square().sin().reshape(shape) / 2


def square(theta: Tensor) -> Tensor:
    """A nonsingular matrix `(N, N)` that depends on θ."""
    return torch.eye(N, dtype=torch.float64) + theta @ constant(K, N)


BASE = torch.eye(N, dtype=torch.float64) + constant(N, N)
INVERSE = torch.linalg.inv(BASE)
PLAN: fused_run.Plan = (("coupling", 5), ("swap", 0), ("linear", 5), ("coupling_inverse", 5), ("linear", 5))


def of_run(theta: Tensor) -> tuple[Tensor, ...]:
    """Points and the tensors of `PLAN`: the two couplings share theirs, the factors of a layer are one tensor."""
    x, alpha = torch.cat([theta, theta.sin()], -1), theta.mean()
    hidden, last = theta[:3].expand(2, 3, K) + constant(2, 3, K), theta[:2, :1].expand(2, K, 3) * constant(2, K, 3)
    coupling = alpha, hidden, hidden.sum(-1).unsqueeze(1), last, last.sum(-1).unsqueeze(1)
    linear = BASE, INVERSE, theta / 2, theta / 2, theta[:, 0]
    moved = BASE, INVERSE, linear[2], x[:, :K] + linear[3], x[0]
    return x, *coupling, *linear, *coupling, *moved


def of_run_with_context(theta: Tensor) -> tuple[Tensor, ...]:
    """The same, where the first layer of the first coupling has a bias for each point."""
    x, alpha, weight, bias, *rest = of_run(theta)
    bias = bias + x[:, :3]
    return x, alpha, weight, bias, *rest


def fused_run_of(*values: Tensor) -> Outputs:
    """A fused run where a `Chain` makes one."""
    return fused_run.run_reference(PLAN, *values) if transformed() else fused_run._FusedRun.apply(PLAN, *values)


def knots_of(function: Callable[..., Outputs]) -> Function:
    points, bound = torch.linspace(-2, 2, 5, dtype=torch.float64), torch.full((5,), 3.0, dtype=torch.float64)
    return lambda raw: function(points, raw, bound, False)


#: Columns in another order, and back.
ORDER = torch.tensor([[1, 2, 0, 3], [2, 0, 1, 3]])


FUSED: dict[str, Fused] = {
    "shift": Fused(
        fused_linear.identity_plus_low_rank, fused_linear.identity_plus_low_rank_reference, lambda t: (square(t), t, t)
    ),
    "affine": Fused(
        fused_linear.affine, fused_linear.affine_reference, lambda t: (square(t), square(t).mT, t, t, t[:, 0])
    ),
    "affine-no-bias": Fused(
        fused_linear.affine, fused_linear.affine_reference, lambda t: (BASE, BASE, t, t + t.sin(), None)
    ),
    "change": Fused(fused_linear.logabsdet_update, fused_linear.logabsdet_update_reference, lambda t: (INVERSE, t, t)),
    "change-inverse": Fused(
        fused_linear.logabsdet_update,
        fused_linear.logabsdet_update_reference,
        lambda t: (torch.linalg.inv(square(t)), t, t),
    ),
    "solve": Fused(fused_linear.solve, fused_linear.solve_reference, lambda t: (square(t), INVERSE, t, t + t.sin())),
    "solve-inverse": Fused(
        fused_linear.solve, fused_linear.solve_reference, lambda t: (t.mT, torch.linalg.inv(square(t)), t, t)
    ),
    "cayley": Fused(cayley.cayley, cayley.cayley_reference, lambda t: (t, t.sin() + constant(N, K))),
    "cayley-shared": Fused(cayley.cayley, cayley.cayley_reference, lambda t: (t, t)),
    "turn": Fused(
        cayley.cayley_affine, cayley.cayley_affine_reference, lambda t: (square(t), square(t), t, t.sin(), t[:, 0])
    ),
    "turn-no-bias": Fused(
        cayley.cayley_affine, cayley.cayley_affine_reference, lambda t: (BASE, BASE, t[:, :1], t[:, 1:], None)
    ),
    "cayley-of-blocks-series": Fused(
        algebras.cayley, algebras.cayley_reference, lambda t: (algebras.skew(square(t)).expand(2, N, N) / 16,)
    ),
    "cayley-of-blocks-lapack": Fused(
        algebras.cayley, algebras.cayley_reference, lambda t: (3 * algebras.skew(square(t)) + square(t.sin()),)
    ),
    "turned": Fused(
        partial(algebras.cayley_product, gain=0.3),
        partial(algebras.cayley_product_reference, gain=0.3),
        lambda t: (square(t), square(t) + square(t.sin())),
    ),
    "triangular": Fused(
        partial(triangular.product, gain=0.3),
        partial(triangular.product_reference, gain=0.3),
        lambda t: (BASE, square(t)),
    ),
    "relative": Fused(
        partial(relative.product, gain=0.3), partial(relative.product_reference, gain=0.3), lambda t: (BASE, square(t))
    ),
    "rows-of-blocks": Fused(
        lambda x, blocks: BlockDiagonal(blocks, ORDER).apply_to_rows(x),
        lambda x, blocks: apply_to_rows_reference(x, blocks, ORDER),
        lambda t: (square(t), square(t)[:2].unflatten(-1, (2, 2)).transpose(0, 1)),
    ),
    "rows-of-one-block": Fused(
        lambda x, blocks: BlockDiagonal(blocks, ORDER).apply_to_rows(x),
        lambda x, blocks: apply_to_rows_reference(x, blocks, ORDER),
        lambda t: (square(t), square(t)[:3, :3].unsqueeze(0)),
    ),
    "sinkhorn": Fused(
        partial(simplex.sinkhorn, sweeps=60),
        partial(simplex.sinkhorn_reference, sweeps=60),
        lambda t: ((t @ t.mT).softmax(-1),),
    ),
    "knots": Fused(
        knots_of(knots.knots), knots_of(knots.knots_reference), lambda t: (torch.cat([t, t[:3]]) @ constant(K, 5),)
    ),
    "chain": Fused(fused.fused_chain, fused.chain_reference, lambda t: (t, torch.stack([t.mT @ t, t[:K]] * 2), t)),
    "run": Fused(fused_run_of, partial(fused_run.run_reference, PLAN), of_run),
    "run-with-context": Fused(fused_run_of, partial(fused_run.run_reference, PLAN), of_run_with_context),
}
