"""Dtypes and devices of linear algebra: where float64 is worth it, and what LAPACK needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

#: Of stacks of larger matrices, LU factorisations are made one by one on a CPU: on several threads, MKL may hang there
#: (PyTorch's issues 141358 and 142815).
LU_STACK = 64


def autocasts(device: torch.device) -> bool:
    """Whether autocast shortens what is computed on a device. The meta device, which computes nothing, has none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast is off: small algebra decides about merges and densities, and stays exact."""
    if autocasts(device):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def eye_like(matrix: Tensor) -> Tensor:
    """The identity `(n, n)` with the size, dtype and device of `matrix` `(..., n, n)`."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def in_double(tensor: Tensor) -> Tensor:
    """The tensor in float64, or in complex128."""
    return tensor.to(double_of(tensor.dtype))


def double_of(dtype: torch.dtype) -> torch.dtype:
    """float64, or complex128 for complex numbers."""
    return torch.complex128 if dtype.is_complex else torch.float64


def scaled_by_largest(tensor: Tensor, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
    """The tensor in double precision, divided by its largest absolute entry (along `dims`): what is squared after that
    neither overflows nor vanishes. Zeros stay."""
    exact = in_double(tensor.detach())
    size = exact.abs().amax(dims, keepdim=True)
    return exact / torch.where(size > 0, size, 1.0)


def at_least_single(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if its dtype is shorter: LAPACK knows no half precision."""
    return tensor.float() if torch.finfo(tensor.dtype).bits < 32 else tensor


def unbatched(function: Callable[..., Any], *matrices: Tensor) -> Any:
    """function(*matrices) for a function by LU (`torch.linalg.inv`, `slogdet`, `solve`, ...) that treats a stack
    `(..., n, n)` matrix by matrix: as one call, or as many where that is safer."""
    first = matrices[0]
    if first.dim() <= 2 or first.shape[-1] <= LU_STACK or not first.is_cpu:
        return function(*matrices)
    batch = torch.broadcast_shapes(*(matrix.shape[:-2] for matrix in matrices))
    flat = [matrix.expand(*batch, *matrix.shape[-2:]).reshape(-1, *matrix.shape[-2:]) for matrix in matrices]
    results = [function(*parts) for parts in zip(*flat, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.stack(results).reshape(*batch, *results[0].shape)
    return tuple(torch.stack(parts).reshape(*batch, *parts[0].shape) for parts in zip(*results, strict=True))
