"""What users attach to their training: merges inside PyTorch Lightning, an optimizer, a plain loop with checkpoints.

Lightning is imported when `MergeCallback` is first asked for; the rest needs torch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p4torch.runs.checkpoint import load_checkpoint, save_checkpoint
from p4torch.runs.provenance import provenance
from p4torch.training.fit import Fit
from p4torch.training.flat_adam import FlatAdam

if TYPE_CHECKING:
    from p4torch.training.callback import MergeCallback

__all__ = ["Fit", "FlatAdam", "MergeCallback", "load_checkpoint", "provenance", "save_checkpoint"]


def __getattr__(name: str) -> Any:
    if name == "MergeCallback":
        from p4torch.training.callback import MergeCallback

        return MergeCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
