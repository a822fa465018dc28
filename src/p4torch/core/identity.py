"""Which property a state is of: a line of text that every state dictionary holds, compared before anything is loaded.

It is a tensor of bytes, since safetensors and distributed checkpoints store nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from p4torch.errors import CheckpointError, PropertyWarning, warn

#: What torch calls the entry of a module's own in a state dictionary.
KEY = "_extra_state"

#: Lines are filled up to a multiple of so many bytes: loaders that write into tensors of the same size, as distributed
#: checkpoints do, then read a line of another length, too.
LENGTH = 128


class Identified(nn.Module):
    """A module whose state says what it is of.

    Raises:
        CheckpointError: on loading a state that says something else; nothing of this module is written then.
    """

    def identity(self) -> str:
        """What the numbers of a state mean: the property, and the options that define it or the meaning of B."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        return _encoded(self.identity())

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: it has been compared."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        check_identities({prefix: self}, state_dict)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def identities(module: nn.Module) -> dict[str, Tensor]:
    """The entries that say what the parts of a module are of, by their names in its `state_dict`."""
    parts = module.named_modules(remove_duplicate=False)
    return {f"{path}.{KEY}" if path else KEY: part.get_extra_state() for path, part in parts if _has_identity(part)}


def check_identities(parts: dict[str, nn.Module], state: dict[str, Any]) -> None:
    """Compare what a state says with what modules are, given by the prefixes of their names. A state that holds their
    tensors and says nothing, as those of earlier versions, is taken for one of them, with a warning.

    Raises:
        CheckpointError: naming both.
    """
    silent = []
    for prefix, part in parts.items():
        if not _has_identity(part):
            continue
        own, got = part.get_extra_state(), state.get(prefix + KEY)
        if got is not None and _decoded(got) != _decoded(own):
            name, expected = _place(prefix), _decoded(own)
            raise CheckpointError(f"`{name}` in the checkpoint must be of {expected}, got one of {_decoded(got)}")
        if got is None and any(prefix + name in state for name in _names(part)):
            state[prefix + KEY] = own
            silent.append(_place(prefix))
    if silent:
        warn(
            f"the checkpoint does not say which property {', '.join(f'`{name}`' for name in silent)} has, as those of "
            "earlier versions: shapes are compared and nothing else. Save it again to have that checked",
            PropertyWarning,
        )


def fingerprint(*tensors: Tensor) -> str:
    """A short text for the entries of tensors, to three decimals: equal for all dtypes that hold these."""
    numbers = [(1000 * value.detach().double()).round().long().tolist() for value in tensors]
    return f"{zlib.crc32(str(numbers).encode()):08x}"


def _has_identity(part: nn.Module) -> bool:
    """Whether it says what it is; a class may keep something else in its entry."""
    return isinstance(part, Identified) and type(part).get_extra_state is Identified.get_extra_state


def _names(part: nn.Module) -> Iterable[str]:
    return (
        name for tensors in (part._parameters, part._buffers) for name, value in tensors.items() if value is not None
    )


def _encoded(line: str) -> Tensor:
    text = line.encode()
    return torch.frombuffer(bytearray(text.ljust(-(-len(text) // LENGTH) * LENGTH)), dtype=torch.uint8)


def _decoded(line: Any) -> str:
    """The text, whatever dtype the tensor was cast to with all others."""
    try:
        return bytes(int(number) for number in line.tolist()).decode().rstrip()
    except (AttributeError, TypeError, ValueError):
        return "something that cannot be read"


def _place(prefix: str) -> str:
    """What users call it: the tensor of a site."""
    path, _, name = prefix.removesuffix(".").partition("parametrizations.")
    return f"{path}{name.removesuffix('.0')}" or "state"
