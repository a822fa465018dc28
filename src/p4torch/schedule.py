"""When to merge: a counter beside the optimizer, and care for what the optimizer remembers."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from p4torch import optimizer_state as memory
from p4torch.errors import ArgumentError, CheckpointError, OptimizerError, RecoveryWarning
from p4torch.joint import Group, groups
from p4torch.low_rank import Directions, LowRank
from p4torch.merging import MergeReport
from p4torch.ranks import agreement, average
from p4torch.sites import Site, direction_generator, guard_checkpoints

OptimizerState = Literal["reset_directions", "restart", "transport", "keep", "reset"]


class MergeScheduler:
    """Merges every site of a model each `every` optimizer steps. Call `step()` after `optimizer.step()`.

    Args:
        model: with at least one site.
        optimizer: any torch optimizer that holds the parameters of all perturbations.
        every: N, the merge interval in optimizer steps.
        correct_every: undo rounding drift at every this many merges of a site; 0 for never.
        refresh_every: recompute tracked quantities exactly at every this many merges; 0 for never.
        optimizer_state: what a merge does to the optimizer's memory. "reset_directions" clears that of the redrawn
            directions, whose history is stale, and keeps the rest (for a stack of matrices: if any of them was
            merged). "restart" also clears the momentum of the rest, which points along the old directions, but keeps
            what the optimizer knows of the gradient's size. "transport" maps that momentum onto the new directions
            instead. "keep" clears nothing. "reset" clears all of B: with Adam every merge is then followed by
            full-size first steps, which can stall training for good (re-warm at least).
        directions: "random" or "informed" for every low-rank perturbation, or None: as each was made.
        rewarm: after a merge, scale the updates of B from 1/(rewarm + 1) up to 1 in this many steps. It is a linear
            learning-rate warm-up of B alone that leaves the optimizer's groups and any learning-rate schedule in peace.
        stagger: spread the sites' merges over the interval, so that no single step is slow; those of a `Joint` stay
            together.
        seed: of the redrawn directions, which are a pure function of (seed, site name, merge index).

    In a distributed run (an initialized default process group) all ranks agree on every merge decision.

    Raises:
        ArgumentError: no sites, or an option out of range.
        OptimizerError: the optimizer lacks parameters of a perturbation; the message names them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        every: int = 50,
        *,
        correct_every: int = 50,
        refresh_every: int = 0,
        optimizer_state: OptimizerState = "reset_directions",
        directions: Directions | None = None,
        rewarm: int = 0,
        stagger: bool = False,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("every", every, 1),
            ("correct_every", correct_every, 0),
            ("refresh_every", refresh_every, 0),
            ("rewarm", rewarm, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ArgumentError.of(name, f"an integer >= {least}", repr(value))
        if rewarm >= every:
            raise ArgumentError.of("rewarm", f"below `every` = {every}", rewarm)
        if optimizer_state not in get_args(OptimizerState):
            raise ArgumentError.of("optimizer_state", f"one of {', '.join(get_args(OptimizerState))}", optimizer_state)
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError.of("optimizer", "a torch optimizer", type(optimizer).__name__)
        self.groups = groups(model)
        self.sites = [site for group in self.groups for site in group.sites]
        if not self.sites:
            raise ArgumentError.of("model", "a module with at least one perturbed tensor", type(model).__name__)
        for site in self.sites:
            site.check_frozen()
        if directions not in (None, *get_args(Directions)):
            raise ArgumentError.of("directions", "random, informed or None", repr(directions))
        memory.check_optimizer(optimizer, optimizer_state)
        memory.check_holds(optimizer, {name: value for site in self.sites for name, value in site.trainable().items()})
        guard_checkpoints(model)
        for site in self.sites:
            if directions is not None and isinstance(site.perturbation, LowRank):
                site.perturbation.informed = directions == "informed"
        self.optimizer = optimizer
        self.every, self.correct_every, self.refresh_every = every, correct_every, refresh_every
        self.optimizer_state, self.rewarm, self.stagger, self.seed = optimizer_state, rewarm, stagger, seed
        self.steps = 0
        self.merged = 0
        self.skipped = 0
        self.reports: dict[str, MergeReport] = {}
        self._warming: dict[str, int] = {}
        self._before: dict[str, list[Tensor]] = {}
        self._good = {site.name: _snapshot(site.companions()) for site in self.sites}
        self._watch()

    # --- the schedule -----------------------------------------------------------------------------------------------

    def step(self) -> list[MergeReport]:
        """Count one optimizer step, and merge the sites whose turn it is. Their reports; mostly an empty list."""
        self.steps += 1
        if self._warming:
            self._rewarm()
        for site in self.sites:
            site.perturbation.limit()
        reports = [report for group in self._due(self.steps) for report in self._merge(group)]
        self._watch()
        return reports

    def _due(self, step: int) -> list[Group]:
        return [group for index, group in enumerate(self.groups) if (step + self._offset(index)) % self.every == 0]

    def _watch(self) -> None:
        """Before the step after which sites merge: let them see its gradient."""
        for site in (site for group in self._due(self.steps + 1) for site in group.sites):
            generator = direction_generator(self.seed, f"{site.name}/sketch", int(site.perturbation.attempts))
            site.perturbation.watch(generator, average())

    def attach(self) -> RemovableHandle:
        """Call `step()` by itself after each `optimizer.step()`, for loops that nobody wants to edit."""

        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.step()

        return self.optimizer.register_step_post_hook(hook)

    def _offset(self, index: int) -> int:
        return index * self.every // len(self.groups) if self.stagger else 0

    @torch.no_grad()
    def _merge(self, group: Group) -> list[MergeReport]:
        for site in group.sites:
            site.check_frozen()
        directions = [
            {name: getattr(site.perturbation, name).clone() for name in site.perturbation.directions}
            for site in group.sites
        ]
        reports = group.merge(seed=self.seed, agree=agreement())
        for site, report, previous in zip(group.sites, reports, directions, strict=True):
            self._after(site, report, previous)
        return reports

    def _after(self, site: Site, report: MergeReport, previous: dict[str, Tensor]) -> None:
        """What follows a merge of one site: the optimizer's memory, corrections, recovery, warming, counters."""
        self._remember(site, report, previous)
        index = report.index
        if self.refresh_every and index % self.refresh_every == 0:
            site.refresh()
        elif self.correct_every and index % self.correct_every == 0:
            site.correct()
        self._recover(site, report)
        if self.rewarm and report.merged:
            self._warming[site.name] = 0
            self._before[site.name] = _snapshot(site.trainable())
        self.merged += report.merged
        self.skipped += report.skipped
        self.reports[site.name] = report

    # --- the optimizer's memory -------------------------------------------------------------------------------------

    def _remember(self, site: Site, report: MergeReport, previous: dict[str, Tensor]) -> None:
        """Apply `optimizer_state` to the parameters of one merged site."""
        b, prefix = dict(site.perturbation.own_parameters()), site.name
        if report.nonfinite:
            stale = list(b)
        elif not report.merged or self.optimizer_state == "keep":
            stale = []
        elif self.optimizer_state == "reset":
            stale = list(b)
        else:
            stale = list(site.perturbation.directions)
        stale = [name for name in stale if b[name].requires_grad]
        found = [memory.reset(self.optimizer, b[name], f"{prefix}.{name}") for name in stale]
        if report.merged and not report.nonfinite:
            if self.optimizer_state == "restart":
                for name in b.keys() - set(site.perturbation.directions):
                    memory.transport(self.optimizer, b[name], None)
            elif self.optimizer_state == "transport":
                for name, matrix in site.perturbation.transport(previous).items():
                    memory.transport(self.optimizer, b[name], matrix)
        forgotten = stale and not any(found) and any(b[name].grad is not None for name in stale)
        if forgotten and memory.has_state(self.optimizer, b[stale[0]]):
            raise OptimizerError(
                f"`optimizer` must keep state for {', '.join(f'{prefix}.{name}' for name in stale)}, but has none "
                f"after {self.steps} steps, though they have gradients: is it the optimizer that steps?"
            )

    @torch.no_grad()
    def _recover(self, site: Site, report: MergeReport) -> None:
        """Where a bad batch also poisoned the module's ordinary parameters (a bias), bring back those of the last
        merge; forget every moment that is not finite, also where the parameter still is."""
        poisoned = list(report.nonfinite)
        for (name, value), good in zip(site.companions().items(), self._good[site.name], strict=True):
            if bool(value.isfinite().all()):
                good.copy_(value)
            else:
                value.copy_(good)
                memory.reset(self.optimizer, value, name)
                poisoned.append(name)
        for name, value in {**site.trainable(), **site.companions()}.items():
            if memory.poisoned(self.optimizer, value):
                memory.reset(self.optimizer, value, name)
                poisoned.append(f"state of {name}")
        if poisoned:
            self._warming.pop(site.name, None)
            self._before.pop(site.name, None)
            warnings.warn(
                f"step {self.steps}: non-finite {', '.join(poisoned)} at {site.name}: reset, training goes on",
                RecoveryWarning,
                stacklevel=5,
            )

    @torch.no_grad()
    def _rewarm(self) -> None:
        """Take back a part of the step that the optimizer just made in B: B <- B_before + f (B - B_before)."""
        for site in self.sites:
            if site.name in self._warming:
                age = self._warming[site.name] + 1
                values = list(site.trainable().values())
                for value, before in zip(values, self._before[site.name], strict=True):
                    value.copy_(torch.lerp(before, value, age / (self.rewarm + 1)))
                if age == self.rewarm:
                    del self._warming[site.name], self._before[site.name]
                else:
                    self._warming[site.name] = age
                    self._before[site.name] = _snapshot(site.trainable())

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counters, reports and buffers as plain numbers, strings and tensors. The merge index of every site is in
        the model's own state."""
        return {
            "steps": self.steps,
            "merged": self.merged,
            "skipped": self.skipped,
            "seed": self.seed,
            "sites": [site.name for site in self.sites],
            "reports": {name: asdict(report) for name, report in self.reports.items()},
            "warming": dict(self._warming),
            "before": {name: [value.clone() for value in values] for name, values in self._before.items()},
            "good": {name: [value.clone() for value in values] for name, values in self._good.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises CheckpointError, and changes nothing, if the sites differ."""
        names = [site.name for site in self.sites]
        missing = [key for key in self.state_dict() if not isinstance(state, dict) or key not in state]
        if missing:
            raise CheckpointError(f"`state` must be of a MergeScheduler, but lacks {', '.join(missing)}")
        if state["sites"] != names:
            raise CheckpointError(f"`state` must be of the sites {names}, got {state.get('sites')}")
        shapes = {name: [value.shape for value in values] for name, values in self._good.items()}
        came = {name: [value.shape for value in values] for name, values in state["good"].items()}
        if shapes != came:
            raise CheckpointError(f"`state['good']` must have the shapes {shapes}, got {came}")
        self.reports = {name: _report(fields) for name, fields in state["reports"].items()}
        self.steps, self.merged, self.skipped = state["steps"], state["merged"], state["skipped"]
        self.seed = state["seed"]
        self._warming = dict(state["warming"])
        devices = {site.name: site.base.device for site in self.sites}
        for target, source in ((self._before, state["before"]), (self._good, state["good"])):
            target.clear()
            target.update(
                {name: [value.to(devices[name], copy=True) for value in values] for name, values in source.items()}
            )
        for site in self.sites:
            site.perturbation.forget()
        self._watch()


def _report(fields: dict[str, Any]) -> MergeReport:
    return MergeReport(**{**fields, "nonfinite": tuple(fields["nonfinite"])})


def _snapshot(named: dict[str, nn.Parameter]) -> list[Tensor]:
    return [value.detach().clone() for value in named.values()]
