"""Counts that no noise can move: operations dispatched, and bytes alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """Follows every storage from the first operation that touches it to its death: forward, backward, optimizer.

    `kernels` counts dispatched operations (views included: on tiny tensors they cost as much as others), `live` the
    bytes of all storages alive, `peak` its maximum. Memory that an operation uses inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = self.live = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def restart(self) -> None:
        """Count from here on; what is alive stays counted as alive."""
        self.kernels, self.peak = 0, self.live

    def follow(self, tensors: Iterable[object]) -> None:
        """Count what these hold, once for each storage."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def ended(_: object) -> None:
            del self._alive[key]
            self.live -= size

        self._alive[key] = weakref.ref(storage, ended)
        self.live += size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.kernels += 1
        self.follow(tree_leaves((args, kwargs, result)))
        return result


def count(step: Callable[[], object], held: Iterable[object], warmup: int = 1) -> Ledger:
    """The ledger of one step in the steady state. `held` lives all the time, whether it is used or not."""
    ledger = Ledger()
    ledger.follow(held)
    with ledger:
        for _ in range(warmup):
            step()
        ledger.restart()
        step()
    return ledger


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and gradients that are there already."""
    gradients = [value.grad for value in module.parameters() if value.grad is not None]
    return [*module.parameters(), *module.buffers(), *gradients]
