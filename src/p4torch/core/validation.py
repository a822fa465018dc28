"""Which tensors a perturbation can be put on."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Size, Tensor

from p4torch._options import check_tensor
from p4torch.errors import ArgumentError


def check_base(tensor: Tensor, argument: str = "base") -> None:
    """Refuse what no property can start from: not a floating tensor, empty, or not finite."""
    check_tensor(argument, tensor)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise ArgumentError.of(argument, "of a floating-point dtype", tensor.dtype)
    if tensor.numel() == 0:
        raise ArgumentError.of(argument, "not empty", tuple(tensor.shape))
    if not bool(tensor.isfinite().all()):
        bad = int((~tensor.isfinite()).sum())
        raise ArgumentError.of(argument, "finite", f"{bad} non-finite entries of {tensor.numel()}")


def check_fits(tensor: Tensor, argument: str, shape: Size, parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse a base of another shape, dtype or device than the perturbation, with its parameters, was made for."""
    if not isinstance(tensor, Tensor) or tensor.shape != shape:
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ArgumentError.of(argument, f"of shape {tuple(shape)}", got)
    for name, value in parameters:
        if (value.dtype, value.device) != (tensor.dtype, tensor.device):
            expected = f"{value.dtype} on {value.device}, as {name} is"
            raise ArgumentError.of(argument, expected, f"{tensor.dtype} on {tensor.device}")
