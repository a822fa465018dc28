"""Training of tiny models under Lightning: many optimizer steps in one of its batches."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from p4torch.training.flat_adam import FlatAdam
from p4torch.training.steps import descend, warmup_cosine


class ChunkedFit(pl.LightningModule):
    """Maximum likelihood of a flow with Adam. What Lightning takes for one batch is a chunk `(c, batch, n)` of c whole
    batches, and each of them makes one optimizer step.

    Where a step takes milliseconds, what a trainer does around it (hooks, counters, data transfer) costs as much;
    here it is paid once a chunk. The learning rate is a pure function of the step, so there is no schedule to restore.

    Args:
        flow: called with a batch, returns log p of each point.
        steps: of the whole run.
        learning_rate: at its top.
        clip: largest norm of the gradient of all parameters together.
        done: steps made before, after a resume.
        probe: called once a chunk before its last step, when perturbations are far from their reset.
    """

    def __init__(
        self,
        flow: nn.Module,
        steps: int,
        learning_rate: float,
        *,
        clip: float = 1.0,
        done: int = 0,
        probe: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.flow = flow
        self.steps, self.learning_rate, self.clip = steps, learning_rate, clip
        self.done, self.probe = done, probe
        self.trainable = [value for value in flow.parameters() if value.requires_grad]
        self.seconds = 0.0

    def configure_optimizers(self) -> FlatAdam:
        return FlatAdam(self.trainable, lr=self.learning_rate)

    def training_step(self, chunk: Tensor, batch_idx: int) -> Tensor:
        """The steps of one chunk; returns their mean loss."""
        optimizer = self.trainer.optimizers[0]
        assert isinstance(optimizer, FlatAdam)
        started = time.perf_counter()
        total = torch.zeros((), device=chunk.device)
        for index, batch in enumerate(chunk.unbind(0)):
            if self.probe is not None and index == len(chunk) - 1:
                self.probe()
            total += self.step(batch, optimizer)
        self.seconds += time.perf_counter() - started
        return total / len(chunk)

    def step(self, batch: Tensor, optimizer: FlatAdam) -> Tensor:
        """One optimizer step; returns the detached loss. A group of parameters may have a `share` of the rate."""
        loss = self.loss(batch)
        descend(optimizer, loss, self.learning_rate * warmup_cosine(self.done, self.steps), self.clip, self.usable)
        self.done += 1
        return loss.detach()

    def loss(self, batch: Tensor) -> Tensor:
        """Of one batch, `()`."""
        return -self.flow(batch).mean()

    def usable(self, norm: Tensor) -> bool:
        """Whether the optimizer is to step along a gradient of this norm."""
        return True


def quiet_trainer(*callbacks: pl.Callback, devices: int = 1) -> pl.Trainer:
    """A trainer for one pass over the data that leaves files, bars and logs to its callbacks."""
    return pl.Trainer(
        accelerator="cpu",
        devices=devices,
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextmanager
def interruptible() -> Iterator[None]:
    """Around a trainer's `fit`: Ctrl-C raises KeyboardInterrupt. By itself Lightning leaves the whole process, and
    ignores the signal from then on, also in a notebook."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
