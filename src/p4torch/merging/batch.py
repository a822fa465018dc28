"""Groups that merge at once: whole tensors where they are sharded, one decision for all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from p4torch._eager import eager
from p4torch.core.low_rank import LowRank
from p4torch.core.transaction import MergeReport, agree
from p4torch.merging.diagnostics import Diagnostics
from p4torch.merging.distributed import Processes
from p4torch.merging.gathering import batches, gathered
from p4torch.merging.joint import Group, groups
from p4torch.merging.optimizer_state import OptimizerState, Sums, sums_of_shards
from p4torch.merging.recovery import Recovery
from p4torch.merging.stacks import merge_stack, on_their_own
from p4torch.parametrize.sites import Site, guard_checkpoints


@dataclass(frozen=True)
class Outcome:
    """What became of a site: its report, None where it rests; its `health` in all processes (see `Recovery`), and what
    is needed for the optimizer's memory: `maps` of its directions and `sums` of sharded entries."""

    site: Site
    report: MergeReport | None
    health: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    sums: Sums = field(default_factory=dict)


@torch.no_grad()
def merge_batch(
    batch: Sequence[Group],
    seed: int,
    optimizer: Optimizer,
    option: OptimizerState,
    processes: Processes,
    recovery: Recovery,
    diagnostics: Diagnostics,
    correct: Callable[[Site, MergeReport], None],
) -> list[Outcome]:
    """Merge groups, but for those that rest, and `correct` what they made. The processes agree on all decisions, and on
    what is finite, in one reduction, which also adds up what the `option` needs of the optimizer's sharded state."""
    sites, active = [site for group in batch for site in group.sites], [g for g in batch if not g.is_frozen]
    for group in batch:
        for site in group.sites:
            if group.is_frozen:
                site.perturbation.discard_sketch()
            else:
                site.keep_frozen()
    health = [recovery.health(site) for site in sites]
    sums = {} if option in ("keep", "reset") else sums_of_shards(optimizer, sites)
    reduce = processes.reduction(list(sums.values()))
    with gathered(active) as merging:
        members = [site for group in merging for site in group.sites]
        before = diagnostics.before(members)
        previous = [_directions(site) for site in members]
        reports = merge_stack(members, seed) if processes.count == 1 and on_their_own(merging) else None
        transactions = [] if reports else [group.transaction(seed) for group in merging]
        masks = [transaction.masks for transaction in transactions]
        agreed = iter(agree([mask for each in (*masks, health) for mask in each], reduce))
        reports = reports or [
            report
            for transaction, each in zip(transactions, masks, strict=True)
            for report in transaction.commit(list(islice(agreed, len(each))))
        ]
        diagnostics.after(members, reports, before)
        maps: dict[str, dict[str, Tensor]] = {}
        for site, report, old in zip(members, reports, previous, strict=True):
            correct(site, report)
            if (
                option == "transport"
                and report.merged
                and not report.nonfinite
                and isinstance(site.perturbation, LowRank)
            ):
                maps[site.name] = site.perturbation.transport(old)
    merged = {report.site: report for report in reports}
    total = dict(zip(sums, reduce.sums, strict=True)) if reduce is not None else sums
    return [
        Outcome(site, merged.get(site.name), healthy, maps.get(site.name, {}), total)
        for site, healthy in zip(sites, _on_host(list(agreed)), strict=True)
    ]


def _on_host(masks: list[Tensor]) -> list[Tensor]:
    """Masks on the CPU, by one transfer."""
    together = torch.cat([mask.to(masks[0].device) for mask in masks]).cpu()
    return list(together.split([len(mask) for mask in masks]))


def _directions(site: Site) -> dict[str, Tensor]:
    return {name: getattr(site.perturbation, name).clone() for name in site.perturbation.directions}


@eager
def merge(model: nn.Module, force: bool = False, *, seed: int = 0) -> list[MergeReport]:
    """Merge every site now: A <- R_B(A), B <- B₀. `force` overrides bounds, never finiteness or the residual.

    Not between a forward and its backward pass: autograd would (rightly) refuse the backward pass. An optimizer's
    state is not touched; in training use `MergeScheduler`. A model in shards is merged by all its processes together.
    """
    merging = groups(model)
    guard_checkpoints(model)
    for group in merging:
        for site in group.sites:
            site.keep_frozen()
    reports: list[MergeReport] = []
    for batch in batches(merging, processes=1):
        with gathered(batch) as whole:
            sites = [site for group in whole for site in group.sites]
            together = merge_stack(sites, seed) if on_their_own(whole) and not force else None
            reports += together or [report for group in whole for report in group.merge(seed=seed, force=force)]
    return reports
