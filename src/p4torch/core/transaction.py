"""The merge of equations 1 and 2, A <- R_B(A) and B <- B₀, as a transaction: propose, validate, commit.

Source: Krämer, Köhler and Noé (2020), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Size, Tensor, nn

from p4torch import linalg
from p4torch._eager import eager
from p4torch.core.masks import assign, finite
from p4torch.core.validation import check_fits

#: The element-wise minimum of a mask over all processes of a distributed run.
AllReduce = Callable[[Tensor], Tensor]

_NONFINITE = "B was not finite and has been reset"


@dataclass(frozen=True)
class Veto:
    """A reason not to merge: `mask` `(...)` is true for the matrices that are refused. `soft` ones can be forced."""

    reason: str
    mask: Tensor
    soft: bool = False


@dataclass(frozen=True)
class Proposal:
    """The candidate of a merge: the new base, new values for tracked tensors (old tensor, new value), and vetoes. One
    that is decided without being built has no base but `write`, which makes it where the mask says so."""

    base: Tensor | None
    tracked: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    vetoes: list[Veto] = field(default_factory=list)
    write: Callable[[Tensor], None] | None = None


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. A stack of matrices counts each: `merged + skipped` is the size of the stack."""

    index: int
    merged: int
    skipped: int
    reasons: dict[str, int] = field(default_factory=dict)
    nonfinite: tuple[str, ...] = ()
    site: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything was merged."""
        return self.skipped == 0

    @property
    def reason(self) -> str | None:
        """Why something was skipped, in one line, or None."""
        return "; ".join(self.reasons) or None

    def at(self, site: str) -> MergeReport:
        """The same report, naming its site."""
        return replace(self, site=site)


class Mergeable(Protocol):
    """What a merge needs of a perturbation, see `p4torch.Perturbation`."""

    base_shape: Size
    skips: Tensor

    @property
    def merge_index(self) -> int:
        """How many merges were attempted."""

    def count_merge(self) -> None:
        """One more of them."""

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """B."""

    def reset_where(self, where: Tensor, base: Tensor, generator: torch.Generator) -> None:
        """B <- B₀ where the mask `(...)` says so."""

    def discard_sketch(self) -> None:
        """What was recorded for the next directions is void."""

    def after_commit(self, base: Tensor, report: MergeReport) -> None:
        """The hook behind a merge."""


@dataclass(frozen=True)
class Member:
    """A perturbation with its base in a merge. `generator` draws its new directions."""

    name: str
    perturbation: Mergeable
    base: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class _Decision:
    """What one process makes of a member: its candidate, vetoes, where B was `finite` `(...)` and the names of what was
    not, and `accepted` `(...)`, what all vetoes leave."""

    proposal: Proposal
    vetoes: list[Veto]
    finite: Tensor
    nonfinite: tuple[str, ...]
    accepted: Tensor


class Transaction:
    """A <- R_B(A), B <- B₀ for all members, in two parts. Candidates are proposed and validated when it is made; then
    `commit` writes them, or leaves them with a reason. In between, the processes of a distributed run agree on `masks`,
    for as many transactions as there are at once. Where B is not finite, nothing is merged and B is reset.

    Args:
        members: what merges.
        propose: makes the candidates R_B(A), one a member.
        force: override soft vetoes (bounds), never hard ones (finiteness, residual).
        joint_vetoes: of members that merge all together or not at all: further reasons not to, with masks `()`.
    """

    @torch.no_grad()
    def __init__(
        self,
        members: Sequence[Member],
        propose: Callable[[], list[Proposal]],
        *,
        force: bool = False,
        joint_vetoes: Callable[[list[Proposal]], list[Veto]] | None = None,
    ) -> None:
        self.members = members
        resets = [_reset_nonfinite(member) for member in members]
        with linalg.full_precision(members[0].base.device):
            proposals = propose()
            self._decisions = [
                _validate(member, proposal, reset, force)
                for member, proposal, reset in zip(members, proposals, resets, strict=True)
            ]
            joint = None if joint_vetoes is None else [v for v in joint_vetoes(proposals) if not (force and v.soft)]
        self._joint = joint

    @property
    def masks(self) -> list[Tensor]:
        """What this process accepts: where B is finite, and what may be written, two `(...)` a member."""
        masks = [mask for decision in self._decisions for mask in (decision.finite, decision.accepted)]
        if self._joint is not None:
            everything = not _refusals(self.members, self._decisions, self._joint)
            masks[1::2] = [mask.new_full(mask.shape, everything) for mask in masks[1::2]]
        return masks

    @torch.no_grad()
    def commit(self, masks: Sequence[Tensor]) -> list[MergeReport]:
        """Write what all processes accept: `masks`, the minimum of theirs."""
        decisions = [
            _reset_everywhere(member, decision, finite)
            for member, decision, finite in zip(self.members, self._decisions, masks[::2], strict=True)
        ]
        otherwise = "another rank refused"
        if self._joint is not None:
            refused = _refusals(self.members, decisions, self._joint)
            otherwise = f"merged together or not at all: {'; '.join(refused) or otherwise}"
        return [
            _commit(member, decision, accepted, otherwise)
            for member, decision, accepted in zip(self.members, decisions, masks[1::2], strict=True)
        ]


def agree(masks: Sequence[Tensor], all_reduce_min: AllReduce | None) -> list[Tensor]:
    """The minimum of many masks over all processes, in one reduction."""
    if all_reduce_min is None or not masks:
        return list(masks)
    device = masks[0].device
    agreed = all_reduce_min(torch.cat([mask.flatten().to(device) for mask in masks]))
    parts = agreed.split([mask.numel() for mask in masks])
    return [part.view(mask.shape).to(mask.device) for part, mask in zip(parts, masks, strict=True)]


@eager
def merge(
    members: Sequence[Member],
    propose: Callable[[], list[Proposal]],
    *,
    force: bool = False,
    all_reduce_min: AllReduce | None = None,
    joint_vetoes: Callable[[list[Proposal]], list[Veto]] | None = None,
) -> list[MergeReport]:
    """One `Transaction`, from its candidates to its reports; `all_reduce_min` is over the processes of a distributed
    run, which all make the same decision."""
    transaction = Transaction(members, propose, force=force, joint_vetoes=joint_vetoes)
    return transaction.commit(agree(transaction.masks, all_reduce_min))


def _reset_nonfinite(member: Member) -> tuple[Tensor, tuple[str, ...]]:
    """Reset B where it is not finite in this process, so that a candidate can be made of the rest. Where it was finite,
    and the names of the parameters that were not."""
    perturbation = member.perturbation
    check_fits(member.base, "base", perturbation.base_shape, perturbation.own_parameters())
    good = _finite_b(perturbation)
    names: tuple[str, ...] = ()
    if not bool(good.all()):
        names = tuple(name for name, value in perturbation.own_parameters() if not bool(finite(value, 0)))
        perturbation.discard_sketch()
        drawn = member.generator.get_state()
        perturbation.reset_where(~good, member.base, member.generator)
        member.generator.set_state(drawn)  # all processes draw again, from here
    return good, names


def _reset_everywhere(member: Member, decision: _Decision, good: Tensor) -> _Decision:
    """Reset B where it was not finite in some process."""
    perturbation = member.perturbation
    if bool(good.all()):
        return decision
    perturbation.discard_sketch()
    perturbation.reset_where(~good, member.base, member.generator)
    names = decision.nonfinite or tuple(name for name, _ in perturbation.own_parameters())  # it was in another process
    vetoes = [Veto(_NONFINITE, ~good), *decision.vetoes[1:]]
    return replace(decision, vetoes=vetoes, nonfinite=names)


def _finite_b(perturbation: Mergeable) -> Tensor:
    """Where all of B is finite, `(...)`. Parameters that do not carry the stack's shape count for all of it."""
    mask, batch = torch.ones_like(perturbation.skips, dtype=torch.bool), perturbation.skips.dim()
    for _, value in perturbation.own_parameters():
        mask = mask & finite(value, batch if value.shape[:batch] == perturbation.skips.shape else 0)
    return mask


def _validate(member: Member, proposal: Proposal, reset: tuple[Tensor, tuple[str, ...]], force: bool) -> _Decision:
    """All vetoes, and what they leave in this process."""
    skips, (good, nonfinite) = member.perturbation.skips, reset
    vetoes = [Veto(_NONFINITE, ~good), *(veto for veto in proposal.vetoes if not (force and veto.soft))]
    if proposal.base is not None:
        vetoes.append(Veto("R_B(A) is not finite", ~finite(proposal.base, skips.dim())))
    accepted = ~torch.stack([veto.mask.expand_as(skips) for veto in vetoes]).any(0)
    return _Decision(proposal, vetoes, good, nonfinite, accepted)


def _refusals(members: Sequence[Member], decisions: Sequence[_Decision], joint: Sequence[Veto]) -> list[str]:
    """Who refuses, and why."""
    named = [
        f"{member.name}: {veto.reason}"
        for member, decision in zip(members, decisions, strict=True)
        for veto in decision.vetoes
        if bool(veto.mask.any())
    ]
    return named + [veto.reason for veto in joint if bool(veto.mask.any())]


def _commit(member: Member, decision: _Decision, accepted: Tensor, otherwise: str) -> MergeReport:
    """Write what was `accepted` `(...)`, in the end and in all processes, and reset B there; leave the rest.
    `otherwise` is the reason to report where the decision itself has none."""
    perturbation, base, proposal = member.perturbation, member.base, decision.proposal
    if proposal.base is not None:
        assign(base, proposal.base, accepted)
    if proposal.write is not None and bool(accepted.any()):
        proposal.write(accepted)
    for tensor, value in proposal.tracked:
        assign(tensor, value, accepted)
    perturbation.reset_where(accepted, base, member.generator)
    perturbation.skips.copy_(torch.where(accepted, 0, perturbation.skips + 1))
    perturbation.count_merge()
    merged = int(accepted.sum())
    skipped = accepted.numel() - merged
    reasons = {veto.reason: int(veto.mask.sum()) for veto in decision.vetoes if bool(veto.mask.any())}
    if skipped and not reasons:
        reasons = {otherwise: skipped}
    report = MergeReport(perturbation.merge_index, merged, skipped, reasons, decision.nonfinite, member.name)
    perturbation.after_commit(base, report)
    return report
