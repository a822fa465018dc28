"""Rows on the simplex, and doubly stochastic matrices: weights, normalisation, Sinkhorn's sweeps, admission."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.errors import ArgumentError
from p4torch.linalg.reference import reference_wanted, transformed

#: Sinkhorn's sweeps where they go on until rows and columns sum to 1: at most, and between two checks.
MAX_SWEEPS, CHECK_EVERY = 100, 10

#: On a CPU, a step checks after so many sweeps whether scales still change by more than so many machine epsilons.
STEP_CHECK_EVERY, STEP_TOLERANCE = 3, 8

#: The most sweeps that there are when a tensor is admitted.
ADMISSION_SWEEPS = 1000


def multiplicative_update(base: Tensor, p: Tensor, q: Tensor, sweeps: int) -> Tensor:
    """A ⊙ exp(P Qᵀ), its rows divided by their sums: softmax(log A + P Qᵀ), in which nothing overflows. With sweeps, of
    Sinkhorn, columns come first, also by logarithms: then each column has an entry of at least 1/n²."""
    logs = linalg.at_least_single(base).log()
    logs = linalg.add_low_rank(logs, p.to(logs.dtype), q.to(logs.dtype))
    if sweeps:
        logs = logs - logs.logsumexp(-2, keepdim=True)
    weights = logs.softmax(-1)
    return (sinkhorn(weights, sweeps) if sweeps else weights).to(base.dtype)


def sinkhorn_reference(weights: Tensor, sweeps: int) -> Tensor:
    """D K D', after so many sweeps of Sinkhorn: columns by their sums, then rows. Rows sum to 1, columns nearly."""
    rows = 1 / weights.sum(-1, keepdim=True)
    columns = torch.ones_like(rows)
    for _ in range(sweeps):
        columns = 1 / (weights.mT @ rows)
        rows = 1 / (weights @ columns)
    return rows * weights * columns.mT


def sinkhorn(weights: Tensor, sweeps: int) -> Tensor:
    """`sinkhorn_reference`, with the derivatives of its limit; on a CPU it ends where more sweeps change nothing."""
    if transformed():
        return sinkhorn_reference(weights, sweeps)
    return _Sinkhorn.apply(weights, sweeps)  # type: ignore[no-untyped-call]


def _fixed_point(step: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """Repeat (x, y) <- step(x); on a CPU, where checks are cheap, until x changes by rounding alone."""
    x = start
    for sweep in range(sweeps):
        before = x
        x, y = step(before)
        if sweep % STEP_CHECK_EVERY == STEP_CHECK_EVERY - 1 and x.device.type == "cpu":
            change = (x - before).abs().amax() / x.abs().amax()
            if not bool(change > STEP_TOLERANCE * torch.finfo(x.dtype).eps):
                break
    return x, y


class _Sinkhorn(torch.autograd.Function):
    """W = D K D' with rows and columns that sum to 1, hence dW = W ⊙ (dK / K + α 1ᵀ + 1 βᵀ). With G = ∂L/∂W,
    ∂L/∂K = D (G - a 1ᵀ - 1 bᵀ) D' where a + W b = (W ⊙ G) 1 and b + Wᵀa = (W ⊙ G)ᵀ 1: solved by sweeps, too, which
    converge as fast. Only products with vectors, and no tape of the sweeps."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, sweeps: int) -> Tensor:
        def step(rows: Tensor) -> tuple[Tensor, Tensor]:
            columns = 1 / (weights.mT @ rows)
            return 1 / (weights @ columns), columns

        rows, columns = _fixed_point(step, 1 / weights.sum(-1, keepdim=True), sweeps)
        scaled = rows * weights * columns.mT
        ctx.save_for_backward(weights, rows, columns, scaled)
        ctx.sweeps = sweeps
        return scaled

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weights, rows, columns, scaled = ctx.saved_tensors
        if reference_wanted(g):
            return _gradient_reference(weights, g, ctx.sweeps), None
        product = scaled * g
        of_rows, of_columns = product.sum(-1, keepdim=True), product.sum(-2).unsqueeze(-1)

        def step(a: Tensor) -> tuple[Tensor, Tensor]:
            b = of_columns - scaled.mT @ a
            return of_rows - scaled @ b, b

        a, b = _fixed_point(step, of_rows, ctx.sweeps)
        return (g - a - b.mT).mul_(rows).mul_(columns.mT), None


def _gradient_reference(weights: Tensor, g: Tensor, sweeps: int) -> Tensor:
    """The same ∂L/∂K as a differentiable function, with D D' = W / K; 0 where K is."""
    scaled = sinkhorn(weights, sweeps)
    product = scaled * g
    of_rows, of_columns = product.sum(-1, keepdim=True), product.sum(-2).unsqueeze(-1)
    a = of_rows
    for _ in range(sweeps):
        b = of_columns - scaled.mT @ a
        a = of_rows - scaled @ b
    positive = weights > 0
    return (g - a - b.mT) * torch.where(positive, scaled / torch.where(positive, weights, 1), 0)


def rows_normalized(weights: Tensor) -> Tensor:
    """Each row by its sum."""
    return weights / weights.sum(-1, keepdim=True)


def doubly_normalized(weights: Tensor, tolerance: float, limit: int = MAX_SWEEPS) -> Tensor:
    """The limit of Sinkhorn's sweeps, where at most `limit` of them come within the tolerance; the
    others are rounded to the Birkhoff polytope."""
    for _ in range(-(-limit // CHECK_EVERY)):
        weights = sinkhorn_reference(weights, CHECK_EVERY)
        unfinished = simplex_defect(weights, True) > tolerance
        if not bool(unfinished.any()):
            return weights
    return torch.where(unfinished[..., None, None], rounded_to_birkhoff(weights), weights)


def rounded_to_birkhoff(weights: Tensor) -> Tensor:
    """A doubly stochastic matrix as near, up to a factor, as row and column sums are to 1: rows and then columns that
    sum to more are scaled down, and what all lack is added in proportion, r cᵀ / Σr. Altschuler, Weed and Rigollet
    (2017)."""
    for dim in (-1, -2):
        weights = weights / weights.sum(dim, keepdim=True).clamp_min(1)
    rows, columns = ((1 - weights.sum(dim, keepdim=True)).clamp_min(0) for dim in (-1, -2))
    return weights + rows * columns / rows.sum(-2, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def simplex_defect(tensor: Tensor, doubly: bool) -> Tensor:
    """The largest of |row sum - 1|, the negative entries and, if `doubly`, |column sum - 1|: `(...)` in float64."""
    exact = tensor.detach().double()
    parts = [(exact.sum(-1) - 1).abs().amax(-1), -exact.amin((-2, -1)).clamp_max(0)]
    if doubly:
        parts.append((exact.sum(-2) - 1).abs().amax(-1))
    return torch.stack(parts).amax(0)


def projected_onto_simplex(tensor: Tensor, floor: float, doubly: bool) -> Tensor:
    """Negative entries cut off, rows divided by their sums, or, with `doubly`, rows and columns until both sum to 1;
    and least entries of `floor`/m, see `mixed_with_uniform`. Float64. Raises ArgumentError where nothing can be scaled.
    """
    exact = tensor.double()
    _check_mass(exact, "row")
    clipped = mixed_with_uniform(rows_normalized(exact.clamp_min(0)), floor, (-1,))
    if not doubly:
        return clipped
    if floor == 0:
        _check_mass(exact.mT, "column")
    normalized = doubly_normalized(clipped, torch.finfo(tensor.dtype).eps, ADMISSION_SWEEPS)
    return mixed_with_uniform(normalized, floor, (-2, -1))


def mixed_with_uniform(tensor: Tensor, floor: float, dims: tuple[int, ...]) -> Tensor:
    """(1 - t) A + t/m, with the t for which the least entry (of each row, or matrix) is `floor`/m, 0 <= floor < 1; none
    where it is not below that. All sums stay."""
    m, least = tensor.shape[-1], tensor.amin(dims, keepdim=True)
    share = ((floor / m - least) / (1 / m - least).clamp_min(torch.finfo(least.dtype).tiny)).clamp(0, 1)
    return tensor + share * (1 / m - tensor)


def _check_mass(exact: Tensor, what: str) -> None:
    """Rows that are nothing but zeros once negative entries are cut off, or whose entries cancel, have no scaling."""
    size = exact.abs().sum(-1)
    cancels = (exact.sum(-1).abs() <= 8 * torch.finfo(torch.float32).eps * size) & (exact < 0).any(-1)
    massless = (exact <= 0).all(-1) | cancels
    if bool(massless.any()):
        count = f"{int(massless.sum())} of {massless.numel()} {what}s"
        got = f"{count} with none, or with negative entries that cancel it: sum 0"
        raise ArgumentError.of("tensor", f"of positive mass in each {what}, to be divided by it", got)
