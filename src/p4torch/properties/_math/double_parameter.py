"""Tensors that stay in double precision, whatever happens to the module around them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from p4torch import linalg


class DoubleParameter(nn.Module):
    """A frozen Parameter in float64 (complex128) that `.to(dtype)`, `.half()` and `.float()` leave so."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(linalg.in_double(value.detach()).clone(), requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DoubleParameter:
        super()._apply(lambda value: _keeping_dtype(value, fn(value)), recurse)  # type: ignore[no-untyped-call]
        return self


def _keeping_dtype(value: Tensor, changed: Tensor) -> Tensor:
    return changed if changed.dtype == value.dtype else value.to(changed.device)
