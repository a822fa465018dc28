"""States whose structure never changes, for checkpoints that load into what is there already."""

from __future__ import annotations

from typing import Any

#: What holds more or fewer entries as training goes on.
_GROWING = ("reports", "warming", "before", "diagnostics")


def as_leaves(state: dict[str, Any]) -> dict[str, Any]:
    """The same state with each part that grows inside of a tuple of one.

    `torch.distributed.checkpoint` goes through dicts, and loads those entries only that the state to be loaded into has
    as well, without a word about the others. A tuple is one entry to it, whatever is inside.
    """
    return {key: (value,) if key in _GROWING else value for key, value in state.items()}


def from_leaves(state: Any) -> Any:
    """The inverse of `as_leaves`; anything else stays as it is."""
    if not isinstance(state, dict):
        return state
    return {key: value[0] if isinstance(value, tuple) and len(value) == 1 else value for key, value in state.items()}
