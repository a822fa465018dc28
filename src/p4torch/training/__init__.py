"""What users attach to their training: merges inside Lightning and transformers, an optimizer, a loop with checkpoints.

Lightning is imported when `MergeCallback` is first asked for, transformers when `P4TrainerCallback` is; the rest needs
torch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p4torch.runs.checkpoint import load_checkpoint, save_checkpoint
from p4torch.runs.provenance import provenance
from p4torch.training.averaging import WeightAverage
from p4torch.training.fit import Fit
from p4torch.training.flat_adam import FlatAdam
from p4torch.training.lazy import LazyMergeScheduler

if TYPE_CHECKING:
    from p4torch.training.callback import MergeCallback
    from p4torch.training.huggingface import P4TrainerCallback

__all__ = [
    "Fit",
    "FlatAdam",
    "LazyMergeScheduler",
    "MergeCallback",
    "P4TrainerCallback",
    "WeightAverage",
    "load_checkpoint",
    "provenance",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    try:
        if name == "MergeCallback":
            from p4torch.training.callback import MergeCallback

            return MergeCallback
        if name == "P4TrainerCallback":
            from p4torch.training.huggingface import P4TrainerCallback

            return P4TrainerCallback
    except ModuleNotFoundError as error:
        extra = {"pytorch_lightning": "lightning", "transformers": "huggingface"}.get(error.name or "")
        if extra is None:
            raise
        raise ImportError(f'`{name}` needs {error.name}: pip install "p4torch[{extra}]"') from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
