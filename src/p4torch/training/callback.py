"""Merges inside PyTorch Lightning."""

from __future__ import annotations

import warnings
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BaseFinetuning

from p4torch.errors import ArgumentError, StallWarning
from p4torch.training.attached import AttachedScheduler


class MergeCallback(AttachedScheduler, pl.Callback):
    """A `MergeScheduler` for a `LightningModule`: merges every N steps of its optimizer.

    The scheduler hangs on the optimizer itself, so automatic and manual optimization, gradient accumulation and mixed
    precision all count what they should: steps that were made. Its state is a part of Lightning's checkpoints, which
    hold plain numbers, strings and tensors and load with `trainer.fit(..., weights_only=True)`.

    Args:
        every: N, in optimizer steps; None for the interval of each perturbation.
        optimizer: which of the module's optimizers holds the perturbations.
        options: of `p4torch.MergeScheduler`.

    Example:
        >>> from p4torch.training import MergeCallback
        >>> trainer = pl.Trainer(callbacks=[MergeCallback(every=50)])  # doctest: +SKIP
    """

    def __init__(self, every: int | None = None, *, optimizer: int = 0, **options: Any) -> None:
        super().__init__(every, options)
        self.optimizer = optimizer
        self._pending: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizers = trainer.optimizers
        if self.optimizer >= len(optimizers):
            raise ArgumentError.of("optimizer", f"an index below {len(optimizers)}", self.optimizer)
        with warnings.catch_warnings():
            if any(
                isinstance(callback, BaseFinetuning) for callback in cast(Any, trainer).callbacks
            ):  # it will unfreeze them
                warnings.filterwarnings("ignore", ".*so are all perturbations of the model", StallWarning)
            scheduler = self._make(pl_module, optimizers[self.optimizer])
        if self._pending is not None:
            scheduler.load_state_dict(self._pending)
            self._pending = None
        self._attach()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._detach()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        if self.scheduler is not None:
            return self.scheduler.state_dict()
        return dict(self._pending or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning calls this before there is an optimizer: kept until training starts."""
        self._pending = dict(state_dict) or None
