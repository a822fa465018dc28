"""The measures: a long training with merges, directions at B₀, and times."""

from __future__ import annotations

import statistics
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import p4torch as p4
from benchmarks.layers import BATCH, nudge
from benchmarks.measure import Effort, Side
from benchmarks.properties.subjects import Subject, plain
from benchmarks.rows import compare
from p4torch import linalg
from p4torch.runs.provenance import cores
from p4torch.testing._cases import doubled

#: Of the training: size, steps between merges, steps until the target changes, Adam's learning rate, rows a batch.
FEATURES, EVERY, LAP, RATE, ROWS = 64, 20, 500, 3e-3, 64
#: Where directions are counted, and where times are taken.
SMALL, LARGE = 8, 512


# --- training -------------------------------------------------------------------------------------------------


@dataclass
class Walk:
    """A regression onto one element of S after the other, merged every `EVERY` steps."""

    subject: Subject

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.layer = self.subject.layer(FEATURES, self.subject.largest_rank)
        (self.site,) = p4.sites(self.layer)
        self.optimizer = torch.optim.Adam(p4.parameter_groups(self.layer), lr=RATE)
        self.scheduler = p4.MergeScheduler(self.layer, self.optimizer, every=EVERY)
        self.changes: list[float] = []
        self.between = 0.0

    def run(self, steps: int) -> None:
        for step in range(steps):
            if step % LAP == 0:
                target = self.subject.element(FEATURES, self.subject.largest_rank, 1 + step // LAP)
            x = torch.randn(ROWS, FEATURES, dtype=target.dtype)
            self.optimizer.zero_grad()
            (self.layer(x) - x @ target.mT).abs().square().mean().backward()
            self.optimizer.step()
            if (step + 1) % EVERY == 0:
                self._merge()
            else:
                self.scheduler.step()

    @torch.no_grad()
    def _merge(self) -> None:
        self.site.perturbation.after_step()  # of the optimizer's step; the schedule's own then changes nothing
        before = self.layer.weight.clone()
        self.between = max(self.between, float(self.site.perturbation.defect(before).max()))
        merged = self.scheduler.merged
        self.scheduler.step()
        if self.scheduler.merged > merged:
            self.changes.append(relative(self.layer.weight - before, before))


def relative(difference: Tensor, to: Tensor) -> float:
    """In the Frobenius norm."""
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(to))


def training(subject: Subject, steps: int) -> dict[str, Any]:
    """What is left after the training, and what its merges changed."""
    walk = Walk(subject)
    walk.run(steps)
    base = walk.site.base.detach()
    exact = doubled(walk.site.perturbation)
    result = {
        "steps": steps,
        "rank": subject.largest_rank,
        "merged": walk.scheduler.merged,
        "skipped": walk.scheduler.skipped,
        "defect": float(exact.defect(linalg.in_double(base)).max()),
        "defect_before_merges": walk.between,
        "distance": distance(exact, linalg.in_double(base)),
        "change_median": statistics.median(walk.changes),
        "change_largest": max(walk.changes),
        "change_last": walk.changes[-1],
    }
    if type(exact).inverse is not p4.Perturbation.inverse:
        inverse = walk.site.perturbation.inverse(walk.site.base).detach()
        product = linalg.in_double(walk.layer.weight.detach()) @ linalg.in_double(inverse)
        result["inverse_residual"] = float((product - linalg.eye_like(product)).abs().max())
    return result


def distance(exact: p4.Perturbation, base: Tensor) -> float | None:
    """‖A - P(A)‖ / ‖A‖ with P(A) in S, the projection: at least the distance from S. None without a projection, and
    where everything is admitted as it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", p4.ProjectionWarning)
            projected = exact.project(base)
    except NotImplementedError:
        return None
    return None if projected is base else relative(projected - base, base)


# --- directions -----------------------------------------------------------------------------------------------


def directions(subject: Subject) -> dict[str, Any]:
    """In how many independent directions B moves R_B(A) at B₀: the rank of the real Jacobian."""
    torch.manual_seed(0)
    rank = subject.least_rank
    (site,) = p4.sites(subject.layer(SMALL, rank, torch.float64))
    named = dict(site.perturbation.own_parameters())

    def moved(*values: Tensor) -> Tensor:
        result = torch.func.functional_call(site.perturbation, dict(zip(named, values, strict=True)), (site.base,))
        return torch.view_as_real(result) if result.is_complex() else result

    values = tuple(linalg.in_double(value.detach()) for value in named.values())
    blocks = torch.autograd.functional.jacobian(moved, values)
    matrix = torch.cat([block.reshape(-1, value.numel()) for block, value in zip(blocks, values, strict=True)], -1)
    real = torch.cat([matrix.real, matrix.imag], -1) if matrix.is_complex() else matrix
    return {"n": SMALL, "rank": rank, "directions": int(torch.linalg.matrix_rank(real))}


# --- times ----------------------------------------------------------------------------------------------------


def times(subject: Subject, effort: Effort) -> dict[str, Any]:
    """A training step relative to that of `nn.Linear` of the same dtype, and a merge in training steps."""
    ranks: tuple[int | None, ...] = subject.ranks or (None,)
    builders = {"nn.Linear": lambda: Side(training_step(plain(subject.element(LARGE, subject.least_rank))))}
    for rank in ranks:
        builders[f"step {rank}"] = partial(_step, subject, rank)
        builders[f"merge {rank}"] = partial(_merge, subject, rank)
    timed = compare(builders, effort, cores(), features=LARGE, batch=BATCH)
    steps = {str(rank): timed.row("", f"step {rank}", "nn.Linear") for rank in ranks}
    merges = {str(rank): timed.row("", f"merge {rank}", f"step {rank}") for rank in ranks}
    return {
        "step": {key: row.as_json() for key, row in steps.items()},
        "merge": {key: row.as_json() for key, row in merges.items()},
    }


def training_step(layer: nn.Linear) -> Any:
    """Forward and backward inside a network: the rows need a gradient, and the one from above is given."""
    dtype = layer.weight.dtype
    rows = torch.randn(BATCH, LARGE, dtype=dtype).requires_grad_()
    above = torch.randn(BATCH, LARGE, dtype=dtype)
    trained = [value for value in layer.parameters() if value.requires_grad]

    def step() -> None:
        for value in (rows, *trained):
            value.grad = None
        layer(rows).backward(above)

    return step


def _step(subject: Subject, rank: int | None) -> Side:
    layer = subject.layer(LARGE, rank)
    nudge(layer)
    return Side(training_step(layer))


def _merge(subject: Subject, rank: int | None) -> Side:
    layer = subject.layer(LARGE, rank)
    (site,) = p4.sites(layer)

    def call() -> None:
        report = site.merge(force=True)
        if not report.ok:
            raise RuntimeError(f"a merge was skipped: {report.reason}")

    return Side(call, prepare=lambda: nudge(layer))
