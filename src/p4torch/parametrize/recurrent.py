"""Recurrent layers whose weights are perturbed: torch keeps a list of them, which has to follow."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn


class Recurrent(nn.RNNBase):
    """What a perturbed `nn.RNN`, `nn.LSTM` or `nn.GRU` does otherwise: `_flat_weights`, the list that torch's kernels
    read, holds the effective weights during a forward pass only, each evaluated once.

    torch by itself evaluates them up to four times a pass, and keeps them: tensors with a graph, so that the module
    could not be copied afterwards.
    """

    plain: ClassVar[type[nn.Module]]

    def forward(self, *arguments: Any, **options: Any) -> Any:
        self._flat_weights = [getattr(self, name) for name in self._flat_weights_names]
        try:
            return super().forward(*arguments, **options)
        finally:
            self._init_flat_weights()

    def _init_flat_weights(self) -> None:
        self._flat_weights = [None] * len(self._flat_weights_names)

    def _update_flat_weights(self) -> None:
        """Nothing: `forward` has done it."""


def recurrent_class(plain: type[nn.RNNBase]) -> type[Recurrent]:
    """The class of a perturbed layer."""
    return type(f"Recurrent{plain.__name__}", (Recurrent, plain), {"plain": plain, "__module__": __name__})
