"""Training one matrix, and measuring what became of it."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

import p4torch as p4
from experiments.linear.config import BATCH, TOLERANCE, Job
from experiments.linear.problems import PROBLEMS
from experiments.linear.trace import Trace
from p4torch.errors import RecoveryWarning
from p4torch.parametrize.sites import counter_based_generator
from p4torch.runs.pool import Progress, Report

#: Beyond this loss a job has diverged. It starts at 4 or less.
_DIVERGED = 1e6
#: Steps between two reports.
_LOOK = 50


def run_job(job: Job, report: Report[Progress] = lambda progress: False) -> dict[str, Any] | None:
    """Train to `TOLERANCE` or the limit; the job's row, or None if the report asked to stop."""
    run = TrainingRun(job)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecoveryWarning)  # a batch that blew up: the loss tells
        while not run.over:
            if run.step % _LOOK == 0 and report(Progress(run.step, f"loss {run.trace.losses[-1]:.1e}")):
                return None
            run.advance()
    return run.row()


class TrainingRun:
    """The state of one training: the matrix, its optimizer, merges, and what has been recorded."""

    def __init__(self, job: Job) -> None:
        torch.manual_seed(job.seed)  # of the first directions; nothing else uses the global generator
        problem = PROBLEMS[job.problem]
        self.job, self.size = job, problem.size
        self.exact_target = problem.target(job.seed)
        self.target = self.exact_target.float()
        self.rows = counter_based_generator(job.seed, f"data/{job.problem}", 0)
        self.layer = layer(job, problem.size)
        self.parameters = [value for value in self.layer.parameters() if value.requires_grad]
        self.optimizer = optimizer(job, self.parameters)
        self.site = next(p4.sites(self.layer), None)
        self.merges = scheduler(job, self.layer, self.optimizer) if self.site else None
        self.apply = self._forward()
        self.step, self.status, self.loss = 0, "", math.inf
        self.durations: list[float] = []
        self.trace = Trace(self.measure, paths=job.paths)
        self.trace.look(0)

    @property
    def over(self) -> bool:
        """Whether the training has come to an end."""
        return bool(self.status)

    def _forward(self) -> Callable[[Tensor], Tensor]:
        """x ↦ x Wᵀ."""
        if self.site is None or self.job.way != "inverse":
            return cast(Callable[[Tensor], Tensor], self.layer)
        perturbation, base = self.site.perturbation, self.site.base
        return lambda x: perturbation.solve(base, x)

    def advance(self) -> None:
        """One optimizer step, with the merge behind it."""
        x = torch.randn(BATCH, self.size, generator=self.rows)
        y = x @ self.target.mT
        before = time.perf_counter()
        self.optimizer.zero_grad()
        loss = (self.apply(x) - y).square().mean()
        total = loss + p4.penalty(self.layer) if self.job.penalty else loss
        total.backward()
        if self.job.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.job.clip)
        self.optimizer.step()
        if self.merges is not None:
            self.merges.step()
        self.durations.append(time.perf_counter() - before)
        self.step += 1
        self._judge(float(loss.detach()))

    def _judge(self, batch_loss: float) -> None:
        """End the training where it has arrived, for which the exact loss counts, or has come to nothing."""
        self.trace.look(self.step)
        if not (batch_loss <= _DIVERGED and self.trace.losses[-1] <= _DIVERGED):
            self.status = "diverged"
        elif batch_loss < 10 * TOLERANCE and self.exact_loss() < TOLERANCE:
            self.status = "reached"
        elif self.step >= self.job.steps:
            self.status = "limit"
        if self.over:
            self.trace.end(self.step)

    # --- measures -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """W in float64."""
        weight = self.layer.weight.double()
        return torch.linalg.inv_ex(weight)[0] if self.job.way == "inverse" else weight

    @torch.no_grad()
    def exact_loss(self) -> float:
        """E ((x Wᵀ - x Tᵀ)²) over all x: |W - T|² / n."""
        return float((self.matrix() - self.exact_target).square().sum()) / self.size

    @torch.no_grad()
    def residual(self) -> float | None:
        """max |R X - I| with the tracked inverse X; None for a plain matrix."""
        if self.site is None:
            return None
        product = self.layer.weight.double() @ self.site.perturbation.inverse(self.site.base).double()
        return float((product - torch.eye(self.size, dtype=torch.float64)).abs().max())

    def measure(self, paths: bool) -> dict[str, Any]:
        """For the trace."""
        values: dict[str, Any] = {"loss": self.exact_loss(), "residual": self.residual()}
        if paths:
            matrix = self.matrix()
            finite = bool(matrix.isfinite().all())
            values["eigenvalues"] = torch.linalg.eigvals(matrix) if finite else None
        return values

    @torch.no_grad()
    def accuracy(self) -> dict[str, Any]:
        """How far inverse, log|det| and sign of R are from those computed afresh in float64."""
        if self.site is None:
            return {"inverse_error": None, "logabsdet_error": None, "sign_right": None}
        weight, perturbation, base = self.layer.weight.double(), self.site.perturbation, self.site.base
        sign, logabsdet = torch.linalg.slogdet(weight)
        inverse = torch.linalg.inv_ex(weight)[0]
        return {
            "inverse_error": float((perturbation.inverse(base).double() - inverse).abs().max()),
            "logabsdet_error": abs(float(perturbation.logabsdet(base).double() - logabsdet)),
            "sign_right": bool(perturbation.sign(base).double() == sign),
        }

    def component_right(self) -> bool:
        """Whether det W has the sign of det T: otherwise W is on the wrong side of the singular set."""
        return bool(torch.linalg.slogdet(self.matrix())[0] == torch.linalg.slogdet(self.exact_target)[0])

    def row(self) -> dict[str, Any]:
        """What is kept of the job."""
        return {
            **self.job.fields(),
            "status": self.status,
            "steps_made": self.step,
            "loss": self.trace.losses[-1],
            "component_right": self.component_right(),
            "worst_residual": self.trace.worst,
            **self.accuracy(),
            "step_seconds": statistics.median(self.durations),
            "mean_step_seconds": statistics.fmean(self.durations),
            "parameters": sum(value.numel() for value in self.parameters),
            "merged": self.merges.merged if self.merges else 0,
            "skipped": self.merges.skipped if self.merges else 0,
            "curve": self.trace.curve(),
        }


def layer(job: Job, size: int) -> nn.Linear:
    """W = I, plain or perturbed."""
    made = nn.Linear(size, size, bias=False)
    nn.init.eye_(made.weight)
    if job.way == "plain":
        return made
    options = {"force_every": job.force_every, "penalty_weight": job.penalty}
    bounds = p4.DeterminantBounds.paper(size, **options) if job.bounds else None  # type: ignore[arg-type]
    p4.perturb(
        made,
        "weight",
        p4.Invertible,
        rank=job.rank,
        form=job.form,
        scale=job.scale,
        directions=job.directions,
        train_directions=job.train_directions,
        loss_on=job.through,
        max_update_norm=job.growth,
        bounds=bounds,
    )
    return made


def optimizer(job: Job, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam or SGD, with torch's defaults but for the learning rate."""
    kind = torch.optim.Adam if job.optimizer == "adam" else torch.optim.SGD
    return kind(parameters, lr=job.learning_rate)


def scheduler(job: Job, made: nn.Linear, optimizer: torch.optim.Optimizer) -> p4.MergeScheduler:
    """The merges."""
    return p4.MergeScheduler(made, optimizer, job.every, optimizer_state=job.optimizer_state, seed=job.seed)
