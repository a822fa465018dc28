"""Buffers that outlive a training step: for tensors this small, allocating and slicing cost as much as computing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor


class Workspace(Protocol):
    """Buffers, and how many bytes they take."""

    bytes: int


W = TypeVar("W", bound=Workspace)

#: So many bytes lie idle at most, and so many workspaces, of all pools together: beyond, the oldest are let go.
IDLE_BYTES, IDLE_COUNT = 2**27, 16


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """The memory of tensors that share none."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Idle(Generic[W]):
    """A workspace that nobody uses at the moment."""

    def __init__(self, pool: Pool[W], key: Hashable, workspace: W) -> None:
        self.pool, self.key, self.workspace = pool, key, workspace


#: Oldest first. Threads and garbage collection may come in between any two steps, each of which is atomic.
_idle: list[_Idle[Any]] = []


class Pool(Generic[W]):
    """Gives workspaces out and keeps those that come back. A workspace belongs to one lease at a time, and a lease to
    one node of one autograd graph: it comes back when that graph is gone, so that graphs alive at once never share
    one."""

    def lease(self, key: Hashable, make: Callable[[], W], keep: bool = True) -> Lease[W]:
        """A workspace that was made for an equal key, or a new one. It comes back only if it is worth to `keep`."""
        for entry in reversed(_idle[:]):
            if entry.pool is self and entry.key == key:
                try:
                    _idle.remove(entry)
                except ValueError:  # another thread was faster
                    continue
                return Lease(self if keep else None, entry.key, entry.workspace)
        return Lease(self if keep else None, key, make())

    def release(self, key: Hashable, workspace: W) -> None:
        """Called by the lease, possibly in the midst of garbage collection."""
        if workspace.bytes > IDLE_BYTES:
            return
        _idle.append(_Idle(self, key, workspace))
        while len(_idle) > IDLE_COUNT or sum(entry.workspace.bytes for entry in _idle[:]) > IDLE_BYTES:
            try:
                _idle.pop(0)
            except IndexError:  # another thread was faster
                return


class Lease(Generic[W]):
    """The right to use a workspace, for as long as this object lives."""

    def __init__(self, pool: Pool[W] | None, key: Hashable, workspace: W) -> None:
        self._pool, self._key, self.workspace = pool, key, workspace

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.release(self._key, self.workspace)
