"""When to merge: a counter beside the optimizer, and care for what the optimizer remembers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from p4torch._eager import eager
from p4torch._options import check_choice, check_integer, is_integer
from p4torch.core.low_rank import Directions, LowRank
from p4torch.core.transaction import MergeReport
from p4torch.errors import ArgumentError, CheckpointError, OptimizerError
from p4torch.merging import optimizer_state as memory
from p4torch.merging.agreement import OPTIONS, agree_on_model, check_steps_on_shards, join, set_directions
from p4torch.merging.batch import Outcome, merge_batch
from p4torch.merging.diagnostics import Diagnostics
from p4torch.merging.gathering import batches
from p4torch.merging.joint import Group, check_unchanged, groups
from p4torch.merging.leaves import as_leaves, from_leaves
from p4torch.merging.optimizer_state import OptimizerState
from p4torch.merging.recovery import Recovery, clone_values, to_site_devices
from p4torch.merging.steps import StepCounter, weak_hook
from p4torch.merging.warmup import Warmup
from p4torch.parametrize.freezing import frozen_parameters, refreeze
from p4torch.parametrize.sharding import reshard, sharded_modules
from p4torch.parametrize.sites import Site, counter_based_generator, guard_checkpoints


class MergeScheduler:
    """Merges every site of a model each `every` optimizer steps. Call `step()` after `optimizer.step()`, or `attach()`
    once.

    Only steps that the optimizer really makes count: `step()` does nothing while gradients are accumulated, or where a
    step was left out.

    A site whose perturbation is frozen (`requires_grad_(False)` on its module) rests until it is unfrozen; those of a
    `JointMerge` merge while any of them trains. Bases and what is tracked never train, also after
    `requires_grad_(True)`.
    A site that stalls or explodes is named by a `StallWarning`.

    Args:
        model: with at least one site.
        optimizer: any torch optimizer that holds the parameters of all perturbations, or what wraps one.
        every: N, the merge interval in optimizer steps. None: for each site the `interval` of its perturbation.
        correct_every: undo rounding drift at every this many merges of a site; 0 for never.
        refresh_every: recompute tracked quantities exactly at every this many merges; 0 for never.
        optimizer_state: what a merge does to the optimizer's memory. "reset_directions" clears that of the redrawn
            directions, whose history is stale, and keeps the rest (for a stack of matrices: if any of them was
            merged). Where a merge redraws all coordinates of B (`Perturbation.permuted`), it clears the momentum and
            levels the second moments at their mean. "restart" also clears the momentum of the rest, which points along
            the old directions, but keeps what the optimizer knows of the gradient's size. "transport" maps that
            momentum onto the new directions instead. "keep" clears nothing. "reset" clears all of B: with Adam every
            merge is then followed by full-size first steps, which can stall training for good (re-warm at least).
        directions: "random" or "gradient" for every low-rank perturbation, or None: as each was made.
        rewarm: after a merge, scale the updates of B from 1/(rewarm + 1) up to 1 in this many steps. It is a linear
            learning-rate warm-up of B alone that leaves the optimizer's groups and any learning-rate schedule in peace.
        stagger: spread the sites' merges over the interval, so that no single step is slow; those of a `JointMerge`
            stay together.
        skip_nonfinite: leave out optimizer steps whose gradients are not all finite, with a warning. It asks the
            device once a step.
        seed: of the redrawn directions, which are a pure function of (seed, site name, merge index).
        process_group: the processes that hold the same model, which agree on every merge. None: those over which it is
            sharded (FSDP2), or all of an initialized default group.

    Raises:
        ArgumentError: no sites, or an option out of range; processes with different models; shards of other kinds.
        OptimizerError: the optimizer lacks parameters of a perturbation; the message names them. Also later: another
            optimizer steps, or sites were added or removed since.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        every: int | None = None,
        *,
        correct_every: int = 50,
        refresh_every: int = 0,
        optimizer_state: OptimizerState = "reset_directions",
        directions: Directions | None = None,
        rewarm: int = 0,
        stagger: bool = False,
        skip_nonfinite: bool = False,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        every = None if every is None else check_integer("every", every, 1)
        correct_every = check_integer("correct_every", correct_every, 0)
        refresh_every, rewarm = check_integer("refresh_every", refresh_every, 0), check_integer("rewarm", rewarm, 0)
        states = get_args(OptimizerState)
        check_choice("optimizer_state", optimizer_state, states, f"one of {', '.join(states)}")
        self._optimizers = memory.unwrapped(optimizer)
        self.optimizer = optimizer = self._optimizers[-1]
        self.model = model
        self.groups = groups(model)
        self.sites = [site for group in self.groups for site in group.sites]
        if not self.sites:
            raise ArgumentError.of("model", "a module with at least one perturbed tensor", type(model).__name__)
        self.every = every
        shortest = min(self._interval(group) for group in self.groups)
        if rewarm >= shortest:
            raise ArgumentError.of("rewarm", f"below `every` = {shortest}", rewarm)
        for site in self.sites:
            site.keep_frozen()
        set_directions(self.sites, directions)
        memory.check_optimizer(optimizer, optimizer_state)
        memory.check_holds(optimizer, {name: value for site in self.sites for name, value in site.trainable().items()})
        guard_checkpoints(model)
        check_steps_on_shards(self.sites)
        self.correct_every, self.refresh_every = correct_every, refresh_every
        self.optimizer_state, self.stagger = optimizer_state, stagger
        self._sharded = sharded_modules(model)
        self._processes = join(self.sites, process_group)
        seed = int(seed) if is_integer(seed) else seed
        options = (every, correct_every, refresh_every, optimizer_state, directions, rewarm, stagger)
        self.seed = agree_on_model(self._processes, self.sites, seed, dict(zip(OPTIONS, options, strict=True)))
        self.steps = 0
        self.merged = 0
        self.skipped = 0
        self.reports: dict[str, MergeReport] = {}
        self._rewarming = Warmup(rewarm, self.sites)
        self._recovery = Recovery(model, optimizer, self.sites)
        self._diagnostics = Diagnostics(optimizer, self.sites)
        self._frozen = [value for site in self.sites for value in (site.base, *frozen_parameters(site.perturbation))]
        self.skip_nonfinite = skip_nonfinite
        self._attached = False
        self._counter = StepCounter(optimizer, self._version)
        self._watch()
        self._start_sketches()

    def __repr__(self) -> str:
        counts = f"steps={self.steps}, merged={self.merged}, skipped={self.skipped}"
        return f"MergeScheduler(sites={len(self.sites)}, every={self.every or 'by site'}, {counts})"

    # --- the schedule -----------------------------------------------------------------------------------------------

    @eager
    def step(self) -> list[MergeReport]:
        """Merge the sites whose turn it is, after the steps that the optimizer has made since the last call; mostly
        one. Their reports; mostly an empty list."""
        reports = [report for _ in range(self._counter.take()) for report in self._count_step()]
        if reports:
            self._counter.restart()
        return reports

    def _count_step(self) -> list[MergeReport]:
        self.steps += 1
        reshard(self._sharded)
        self._rewarming.step()
        for site in self.sites:
            site.perturbation.after_step()
        due = self._due(self.steps)
        if any(group is self.groups[0] for group in due):  # a walk through the model: once an interval, also staggered
            check_unchanged(self.model, self.sites)
        reports = [report for batch in batches(due, self._processes.count) for report in self._merge(batch)]
        self._start_sketches()
        return reports

    def _version(self) -> int:
        """A number that changes whenever B is written to."""
        return sum(value._version for site in self.sites for _, value in site.perturbation.own_parameters())

    def _due(self, step: int) -> list[Group]:
        return [
            group
            for index, group in enumerate(self.groups)
            if (step + self._offset(index)) % self._interval(group) == 0
        ]

    def _start_sketches(self) -> None:
        """Before the step after which sites merge: record its gradient."""
        for site in (site for group in self._due(self.steps + 1) if not group.is_frozen for site in group.sites):
            if isinstance(site.perturbation, LowRank):
                generator = counter_based_generator(self.seed, f"{site.name}/sketch", site.perturbation.merge_index)
                site.perturbation.start_sketch(generator, self._processes.all_reduce_mean())

    def attach(self) -> RemovableHandle:
        """Call `step()` by itself after each `optimizer.step()`, for loops that nobody wants to edit.

        Raises:
            OptimizerError: the optimizer has no step hooks and goes on after the one that it wraps.
        """
        hooked = [each for each in self._optimizers if hasattr(each, "_optimizer_step_post_hooks")]
        if not isinstance(self._optimizers[0], Optimizer) and self._optimizers[0] not in hooked:
            got = type(self._optimizers[0]).__name__
            raise OptimizerError(f"`optimizer` must have step hooks for `attach()`, got {got}: call `step()` instead")
        self._attached = True

        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.step()

        return hooked[0].register_step_post_hook(hook)

    def _offset(self, index: int) -> int:
        return index * self._interval(self.groups[index]) // len(self.groups) if self.stagger else 0

    def _interval(self, group: Group) -> int:
        return self.every or group.interval

    def _watch(self) -> None:
        """Be called before each step of the optimizer."""
        self.optimizer.register_step_pre_hook(weak_hook(self._before_step))

    def _before_step(self) -> None:
        """What must not train has no gradient, also if `requires_grad_(True)` came between."""
        for value in self._frozen:
            refreeze(value)
        if self.skip_nonfinite and self._recovery.drop_nonfinite_gradients(self.steps + 1, self._processes.reduction()):
            self._counter.leave_out()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy watches its own optimizer: hooks are not copied."""
        self.__dict__.update(state)
        self._counter.watch(self.optimizer)
        self._watch()
        if self._attached:
            self.attach()

    @torch.no_grad()
    def _merge(self, batch: list[Group]) -> list[MergeReport]:
        parts = self._processes, self._recovery, self._diagnostics, self._correct
        outcomes = merge_batch(batch, self.seed, self.optimizer, self.optimizer_state, *parts)
        for outcome in outcomes:
            self._after(outcome)
        return [outcome.report for outcome in outcomes if outcome.report is not None]

    def _correct(self, site: Site, report: MergeReport) -> None:
        if self.refresh_every and report.index % self.refresh_every == 0:
            site.refresh()
        elif self.correct_every and report.index % self.correct_every == 0:
            site.correct()

    def _after(self, outcome: Outcome) -> None:
        """What follows a merge of one site: the optimizer's memory, recovery, warming, counters."""
        site, report = outcome.site, outcome.report
        if report is None:
            self._diagnostics.warn_if_all_frozen()
            self._recovery.recover(site, outcome.health, (), self.steps)
            return
        done = memory.update_after_merge(
            self._optimizers, self.optimizer_state, site, report, outcome.maps, outcome.sums
        )
        if report.ok and not site.is_frozen:
            self._diagnostics.warn_if_still(site)
        if self._recovery.recover(site, outcome.health, report.nonfinite, self.steps, done):
            self._rewarming.stop(site)
        if report.merged:
            self._rewarming.start(site)
        self.merged += report.merged
        self.skipped += report.skipped
        self.reports[site.name] = report

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counters, reports and buffers as plain data. The merge index of every site is in the model's own state."""
        state = {
            "steps": self.steps,
            "merged": self.merged,
            "skipped": self.skipped,
            "seed": self.seed,
            "sites": [site.name for site in self.sites],
            "reports": {name: asdict(report) for name, report in self.reports.items()},
            "warming": dict(self._rewarming.ages),
            "before": clone_values(self._rewarming.before),
            "good": clone_values(self._recovery.good),
            "diagnostics": self._diagnostics.state_dict(),
        }
        return as_leaves(state)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises CheckpointError, and changes nothing, if the sites differ."""
        state, names = from_leaves(state), [site.name for site in self.sites]
        missing = [key for key in self.state_dict() if not isinstance(state, dict) or key not in state]
        if missing:
            raise CheckpointError(f"`state` must be of a MergeScheduler, but lacks {', '.join(missing)}")
        if state["sites"] != names:
            raise CheckpointError(f"`state` must be of the sites {names}, got {state.get('sites')}")
        self._recovery.check(state["good"])
        reports = {
            name: {**fields, "nonfinite": tuple(fields["nonfinite"])} for name, fields in state["reports"].items()
        }
        self.reports = {name: MergeReport(**fields) for name, fields in reports.items()}
        self.steps, self.merged, self.skipped = state["steps"], state["merged"], state["skipped"]
        self.seed = state["seed"]
        self._rewarming.ages = dict(state["warming"])
        self._rewarming.before = to_site_devices(state["before"], self.sites)
        self._recovery.good = to_site_devices(state["good"], self.sites)
        self._diagnostics.load_state_dict(state["diagnostics"])
        self._counter.restart()
        self._processes.check_resumed({key: getattr(self, key) for key in ("steps", "merged", "skipped", "seed")})
        for site in self.sites:
            site.perturbation.discard_sketch()
        self._start_sketches()
