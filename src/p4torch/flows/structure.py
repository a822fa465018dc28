"""What a module is made for, beside its parameters: lists of features, as buffers that checkpoints bring along."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from p4torch.errors import CheckpointError


class Structured(nn.Module):
    """A module whose parameters do not determine its map alone: which features move, or are angles, does, too.

    Such lists are buffers, so that a flow of random splits becomes the one that was saved when its checkpoint is
    loaded. Before anything is written, those of all modules inside are checked.

    Attributes:
        structure: names of the buffers.

    Raises:
        CheckpointError: on loading lists of other sizes, of features that do not exist, or some of a module's only.
    """

    structure: ClassVar[tuple[str, ...]] = ()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for path, module in _structured(self, prefix):
            _check(module, state_dict, path)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def structure_of(module: nn.Module) -> dict[str, Tensor]:
    """All lists in a module, by their names in its `state_dict`."""
    return {path + name: getattr(part, name) for path, part in _structured(module) for name in part.structure}


def with_structure(module: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint for a module that was built as the one it is of; if it has no lists at all, as those of earlier
    versions, with the module's own."""
    lists = structure_of(module)
    return state if lists.keys() & state.keys() else {**lists, **state}


def _structured(module: nn.Module, prefix: str = "") -> list[tuple[str, Structured]]:
    """With the prefixes of their names; a module that occurs twice, twice."""
    parts = module.named_modules(prefix=prefix.removesuffix("."), remove_duplicate=False)
    return [(f"{path}." if path else "", part) for path, part in parts if isinstance(part, Structured)]


def _check(module: Structured, state: dict[str, Any], prefix: str) -> None:
    stored = [name for name in module.structure if prefix + name in state]
    for name in module.structure if stored else ():
        key, expected, got = prefix + name, getattr(module, name), state.get(prefix + name)
        if got is None:
            raise CheckpointError(f"`{key}` must be in the checkpoint, where `{prefix}{stored[0]}` is")
        if got.shape != expected.shape:
            shapes = tuple(expected.shape), tuple(got.shape)
            raise CheckpointError(f"`{key}` in the checkpoint must have shape {shapes[0]}, got {shapes[1]}")
        features = getattr(module, "features", None)
        if features is not None and not got.is_floating_point() and bool((got >= features).any()):
            raise CheckpointError(f"`{key}` in the checkpoint must be of features below {features}, got {got.tolist()}")
