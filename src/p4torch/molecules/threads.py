"""Independent pieces of work on as many threads as torch may use, each of which runs torch's operations alone.

Torch's own threads meet after every operation: for many small ones that takes longer than the work, and far longer
where other programs want the same cores.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Found = TypeVar("Found")

_lock = threading.Lock()


def map_on_threads(work: Callable[[Piece], Found], pieces: Iterable[Piece]) -> list[Found]:
    """[work(piece) for piece in pieces], on `torch.get_num_threads()` threads; with one, in this thread.

    Modes of the calling thread, such as `torch.no_grad`, do not reach the work.
    """
    with _lock:
        count = torch.get_num_threads()
        pool = _pool(count) if count > 1 else None
    return [work(piece) for piece in pieces] if pool is None else list(pool.map(work, pieces))


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Threads with one torch thread each. That is a setting of the thread, which it first takes over from the process:
    all threads start here, and the process's is put back."""
    together = threading.Barrier(count)
    pool = ThreadPoolExecutor(count, thread_name_prefix="p4torch", initializer=_alone)
    wait([pool.submit(together.wait) for _ in range(count)])
    torch.set_num_threads(count)
    return pool


def _alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()


def _forget() -> None:
    """Threads do not live on in a forked process."""
    global _lock
    _lock = threading.Lock()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
