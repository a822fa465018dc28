"""A digest of what a checkpoint holds, so that a flipped bit is an error and not another result."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

import torch
from torch import Tensor


def digest(value: Any) -> str:
    """SHA-256 of tensors, numbers, strings, None, and dicts, lists and tuples of them, to the last bit."""
    total = hashlib.sha256()
    _feed(total, value)
    return total.hexdigest()


def _feed(total: Any, value: Any) -> None:
    """What is inside of a container counts, each part with its kind and size."""
    if isinstance(value, dict):
        total.update(f"dict {len(value)}".encode())
        for key, item in value.items():
            _feed(total, key)
            _feed(total, item)
    elif isinstance(value, (list, tuple)):
        total.update(f"list {len(value)}".encode())
        for item in value:
            _feed(total, item)
    elif isinstance(value, Tensor):
        total.update(f"{value.dtype} {tuple(value.shape)}".encode())
        _feed_bytes(total, value.detach())
    else:
        total.update(f"{type(value).__name__} {value!r}\n".encode())


def _feed_bytes(total: Any, tensor: Tensor) -> None:
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    plain = dense.cpu().resolve_conj().resolve_neg().contiguous()
    if plain.numel() > 0:
        total.update((ctypes.c_char * (plain.numel() * plain.element_size())).from_address(plain.data_ptr()))
