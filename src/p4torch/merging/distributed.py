"""What the processes of a distributed run do together. Outside of one there is nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed as dist

from p4torch.errors import ArgumentError, CheckpointError, ProcessWarning, warn

_T = TypeVar("_T")


class Reduction:
    """The minimum of a mask over all processes, and with it, in the same collective, the sums of the numbers given:
    `sums`, once it has been called."""

    def __init__(self, group: Any, sums: Sequence[Tensor] = ()) -> None:
        self._group, self.sums = group, list(sums)

    def __call__(self, mask: Tensor) -> Tensor:
        refusals, numbers = (~mask).flatten().double(), [part.double().flatten() for part in self.sums]
        total = torch.cat([refusals, *(part.to(mask.device) for part in numbers)])
        dist.all_reduce(total, group=self._group)
        refused, *totals = total.split([mask.numel(), *(part.numel() for part in numbers)])
        self.sums = [part.view(old.shape) for part, old in zip(totals, self.sums, strict=True)]
        return (refused == 0).view(mask.shape)


class Processes:
    """The processes that hold the same model: a process group, or None for the default one, if there is one."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            got = "one without this process" if isinstance(group, int) else type(group).__name__
            raise ArgumentError.of("process_group", "None or a process group that this process is in", got)

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        return self  # a process group cannot be copied

    @property
    def count(self) -> int:
        """How many there are."""
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

    def all_reduce_mean(self) -> Callable[[Tensor], Tensor] | None:
        """The mean of a tensor over them, or None for one process."""
        if self.count == 1:
            return None

        def mean(tensor: Tensor) -> Tensor:
            total = tensor.contiguous()
            dist.all_reduce(total, group=self.group)
            return total / self.count

        return mean

    def reduction(self, sums: Sequence[Tensor] = ()) -> Reduction | None:
        """See there; None for one process."""
        return None if self.count == 1 else Reduction(self.group, sums)

    # --- once, when a schedule is made -----------------------------------------------------------------------------

    def check_same(self, described: Mapping[str, Any]) -> None:
        """Raise ArgumentError, in all processes, if what describes a model and its schedule differs between them."""
        difference = self._difference(described)
        if difference:
            raise ArgumentError.of(
                "process_group",
                "of processes that hold the same model, with the same options",
                f"{difference}. Where processes hold different models (ensembles, stages of a pipeline), name those "
                "that share one, as `torch.distributed.new_subgroups` makes them; one alone is a group, too",
            )

    def check_resumed(self, described: Mapping[str, Any]) -> None:
        """Raise CheckpointError, in all processes, if the states that were loaded differ."""
        difference = self._difference(described)
        if difference:
            raise CheckpointError(f"`state` must be the same in all processes, got {difference}")

    def first(self, value: _T, name: str) -> _T:
        """The value of the first process, with a warning if others differ."""
        values = self._collect(value)
        if any(other != values[0] for other in values):
            warn(f"`{name}` differs between processes: all take that of the first, {values[0]!r}", ProcessWarning)
        return values[0]

    @torch.no_grad()
    def share(self, tensors: Mapping[str, Tensor], sharded: bool) -> None:
        """Give all processes the first one's values, in place, if there is any difference; with a warning.

        Raises ArgumentError if the model is `sharded`: its shards were cut from different models.
        """
        if self.count == 1:
            return
        prints = self._collect({name: fingerprint(value) for name, value in tensors.items()})
        different = [name for name in tensors if any(other[name] != prints[0][name] for other in prints)]
        if different:
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            names = ", ".join(different[:3]) + more
            if sharded:
                expected = "made alike in all processes before it is sharded (the same seed, or one checkpoint)"
                raise ArgumentError.of("model", expected, f"different values of {names}")
            warn(f"{names}: values differ between processes: all take those of the first", ProcessWarning)
        for name in different:
            value = tensors[name].detach().contiguous()
            dist.broadcast(value, group_src=0, group=self.group)
            tensors[name].copy_(value)

    def _collect(self, value: _T) -> list[_T]:
        values: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def _difference(self, described: Mapping[str, Any]) -> str:
        """The first difference, as a text."""
        values = self._collect(dict(described))
        for index, other in enumerate(values):
            for name in [*values[0], *other]:
                one, two = values[0].get(name, "nothing"), other.get(name, "nothing")
                if one != two:
                    return f"{name}: {one} in process 0 and {two} in process {index}"
        return ""


def fingerprint(tensor: Tensor) -> int:
    """A number that tells tensors apart: the sum of their bits, weighted by rows, in integers, so that the order of
    summation does not matter."""
    real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[real.element_size()]
    bits = real.contiguous().view(integer) if real.is_floating_point() else real.to(torch.int64)
    lines = bits.reshape(-1, bits.shape[-1] if bits.dim() > 1 else 1).sum(-1, dtype=torch.int64)
    return int((lines * torch.arange(1, len(lines) + 1, device=lines.device)).sum())
