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
from p4torch.core.validation import check_fits

#: The element-wise minimum of a mask over all processes of a distributed run.
AllReduce = Callable[[Tensor], Tensor]


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
    attempts: Tensor
    skips: Tensor

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """B."""

    def reset_where(self, where: Tensor, base: Tensor, generator: torch.Generator) -> None:
        """B <- B₀ where the mask `(...)` says so."""

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
    """A merge that has been validated and not yet made: `accepted` `(...)` is what the vetoes leave."""

    proposal: Proposal
    vetoes: list[Veto]
    nonfinite: tuple[str, ...]
    accepted: Tensor


@eager
@torch.no_grad()
def merge(
    members: Sequence[Member],
    propose: Callable[[], list[Proposal]],
    *,
    force: bool = False,
    all_reduce_min: AllReduce | None = None,
    joint_vetoes: Callable[[list[Proposal]], list[Veto]] | None = None,
) -> list[MergeReport]:
    """A <- R_B(A), B <- B₀ for all members: candidates are proposed and validated first, and then written, or left with
    a reason. Where B is not finite, nothing is merged and B is reset.

    Args:
        members: what merges.
        propose: makes the candidates R_B(A), one a member.
        force: override soft vetoes (bounds), never hard ones (finiteness, residual).
        all_reduce_min: over the processes of a distributed run, which all make the same decision.
        joint_vetoes: of members that merge all together or not at all: further reasons not to, with masks `()`.
    """
    agreed = all_reduce_min or (lambda mask: mask)
    resets = [_reset_nonfinite(member, agreed) for member in members]
    with linalg.full_precision(members[0].base.device):
        proposals = propose()
        decisions = [
            _validate(member, proposal, reset, force)
            for member, proposal, reset in zip(members, proposals, resets, strict=True)
        ]
        joint = None if joint_vetoes is None else [v for v in joint_vetoes(proposals) if not (force and v.soft)]
    if joint is None:
        accepted, otherwise = [agreed(decision.accepted) for decision in decisions], "another rank refused"
    else:
        refused = _refusals(members, decisions, joint)
        everything = bool(agreed(torch.tensor(not refused, device=members[0].base.device)))
        accepted = [torch.full_like(decision.accepted, everything) for decision in decisions]
        otherwise = f"merged together or not at all: {'; '.join(refused) or 'another rank refused'}"
    return [
        _commit(member, decision, mask, otherwise)
        for member, decision, mask in zip(members, decisions, accepted, strict=True)
    ]


def _reset_nonfinite(member: Member, agreed: AllReduce) -> tuple[Veto, tuple[str, ...]]:
    """Reset B where it is not finite in some process. Where that was, and the names of the parameters that were not."""
    perturbation = member.perturbation
    check_fits(member.base, "base", perturbation.base_shape, perturbation.own_parameters())
    bad = ~agreed(_finite_b(perturbation))
    names: tuple[str, ...] = ()
    if bool(bad.any()):
        named = list(perturbation.own_parameters())
        # all of them, if it was in another process
        names = tuple(name for name, value in named if not bool(finite(value, 0))) or tuple(name for name, _ in named)
        perturbation.reset_where(bad, member.base, member.generator)
    return Veto("B was not finite and has been reset", bad), names


def _finite_b(perturbation: Mergeable) -> Tensor:
    """Where all of B is finite, `(...)`. Parameters that do not carry the stack's shape count for all of it."""
    mask, batch = torch.ones_like(perturbation.skips, dtype=torch.bool), perturbation.skips.dim()
    for _, value in perturbation.own_parameters():
        mask = mask & finite(value, batch if value.shape[:batch] == perturbation.skips.shape else 0)
    return mask


def _validate(member: Member, proposal: Proposal, reset: tuple[Veto, tuple[str, ...]], force: bool) -> _Decision:
    """All vetoes, and what they leave in this process."""
    skips = member.perturbation.skips
    vetoes = [reset[0], *(veto for veto in proposal.vetoes if not (force and veto.soft))]
    if proposal.base is not None:
        vetoes.append(Veto("R_B(A) is not finite", ~finite(proposal.base, skips.dim())))
    accepted = ~torch.stack([veto.mask.expand_as(skips) for veto in vetoes]).any(0)
    return _Decision(proposal, vetoes, reset[1], accepted)


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
    perturbation.attempts += 1
    merged = int(accepted.sum())
    skipped = accepted.numel() - merged
    reasons = {veto.reason: int(veto.mask.sum()) for veto in decision.vetoes if bool(veto.mask.any())}
    if skipped and not reasons:
        reasons = {otherwise: skipped}
    report = MergeReport(int(perturbation.attempts), merged, skipped, reasons, decision.nonfinite, member.name)
    perturbation.after_commit(base, report)
    return report


# --- masks ----------------------------------------------------------------------------------------------------------


def assign(tensor: Tensor, value: Tensor, where: Tensor) -> None:
    """tensor <- value in place, where the mask `(...)` says so, for a tensor `(..., n, k)`."""
    if bool(where.all()):
        tensor.copy_(value)
    elif bool(where.any()):
        mask = where.reshape(where.shape + (1,) * (tensor.dim() - where.dim()))
        tensor.copy_(torch.where(mask, value.to(tensor.dtype), tensor))


def finite(tensor: Tensor, batch: int) -> Tensor:
    """Where all of an element of S is finite: a mask over the first `batch` dimensions.

    Minimum and maximum propagate what is not finite, in a single pass; only then it matters where it is.
    """
    real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    if real.numel() == 0 or bool(torch.stack(torch.aminmax(real)).isfinite().all()):
        return torch.ones(tensor.shape[:batch], dtype=torch.bool, device=tensor.device)
    mask = tensor.isfinite()
    return mask.flatten(batch).all(-1) if mask.dim() > batch else mask
