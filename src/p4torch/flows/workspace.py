"""Buffers that outlive a training step: for tensors this small, allocating and slicing cost as much as computing."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

#: So many workspaces of one kind lie idle at most, of so many kinds.
IDLE, KINDS = 4, 4


class Pool(Generic[T]):
    """Workspaces that nobody uses at the moment. A workspace belongs to one lease at a time, and a lease to one node
    of one autograd graph: it comes back when that graph is gone, so that graphs alive at once never share one."""

    def __init__(self) -> None:
        self._idle: dict[Hashable, list[T]] = {}

    def lease(self, key: Hashable, make: Callable[[], T], keep: bool = True) -> Lease[T]:
        """A workspace that was made for an equal key, or a new one. It comes back only if it is worth to `keep`."""
        try:
            workspace = self._idle[key].pop()
        except (KeyError, IndexError):
            workspace = make()
        return Lease(self if keep else None, key, workspace)

    def give_back(self, key: Hashable, workspace: T) -> None:
        """Called by the lease, possibly in the midst of garbage collection: each step here is atomic."""
        idle = self._idle.setdefault(key, [])
        if len(idle) < IDLE:
            idle.append(workspace)
        while len(self._idle) > KINDS:
            self._idle.pop(next(iter(self._idle)), None)


class Lease(Generic[T]):
    """The right to use a workspace, for as long as this object lives."""

    def __init__(self, pool: Pool[T] | None, key: Hashable, workspace: T) -> None:
        self._pool, self._key, self.workspace = pool, key, workspace

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.give_back(self._key, self.workspace)
