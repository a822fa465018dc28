"""What a merge is made of: the candidate with its vetoes, the report, and writing where it was accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

#: Makes all ranks of a distributed run agree on a mask: the element-wise minimum over the ranks.
Agreement = Callable[[Tensor], Tensor]


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
class Cleared:
    """Where B was not finite and has been reset, `(...)`, and which of its parameters were not."""

    where: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """A merge that has been judged and not yet made: the proposal, all vetoes, and the parameters of B that were not
    finite. `accepted` `(...)` is what these leave."""

    proposal: Proposal
    vetoes: list[Veto]
    nonfinite: tuple[str, ...]
    accepted: Tensor


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


def _broad(mask: Tensor, tensor: Tensor) -> Tensor:
    """A mask `(...)` as `(..., 1, 1)`, to meet a tensor `(..., n, k)`."""
    return mask.reshape(mask.shape + (1,) * (tensor.dim() - mask.dim()))


def assign(tensor: Tensor, value: Tensor, where: Tensor) -> None:
    """tensor <- value in place, where the mask says so."""
    if bool(where.all()):
        tensor.copy_(value)
    elif bool(where.any()):
        tensor.copy_(torch.where(_broad(where, tensor), value.to(tensor.dtype), tensor))


def finite(tensor: Tensor, batch: int) -> Tensor:
    """Where all of an element of S is finite: a mask over the first `batch` dimensions.

    Minimum and maximum propagate what is not finite, in a single pass; only then it matters where it is.
    """
    real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    if real.numel() == 0 or bool(torch.stack(torch.aminmax(real)).isfinite().all()):
        return torch.ones(tensor.shape[:batch], dtype=torch.bool, device=tensor.device)
    mask = tensor.isfinite()
    return mask.flatten(batch).all(-1) if mask.dim() > batch else mask
