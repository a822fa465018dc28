"""Contexts: what a conditional flow is given beside the points, `(batch..., c)`, and who takes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from p4torch._options import check_integer, check_tensor
from p4torch.errors import ArgumentError

R = TypeVar("R")
Method = Callable[..., R]


def takes_context(method: Method[R]) -> Method[R]:
    """A method of points of a bijection, of which the context is checked; where there is none, it need not know any."""

    @wraps(method)
    def checked(self: nn.Module, x: Tensor, context: Tensor | None = None) -> R:
        if context is None and not self.context_features:
            return method(self, x)
        check_context(self, context)
        return method(self, x, context)

    return checked


def check_context(module: nn.Module, context: Tensor | None) -> None:
    """Refuse a context where the module takes none, or of another size; and none where it takes one."""
    name, size = type(module).__name__, cast(int, module.context_features)
    if context is None:
        if size:
            raise ArgumentError.of("context", f"given, of shape (..., {size}), since this {name} is conditional", None)
        return
    check_tensor("context", context)
    got = tuple(context.shape)
    if not size:
        expected = f"left out, since nothing in this {name} takes one (layers do that are made with `context=`)"
        raise ArgumentError.of("context", expected, f"a tensor of shape {got}")
    if context.dim() < 1 or got[-1] != size:
        raise ArgumentError.of("context", f"of shape (..., {size})", got)


def check_context_features(context: int) -> int:
    """The size of a context, 0 for none, or an ArgumentError."""
    return check_integer("context", context, 0)


def shown(context: int) -> str:
    """How the size of a context, if there is one, stands in a repr."""
    return f", context={context}" if context else ""


def joint_context_features(members: Iterable[nn.Module]) -> int:
    """c of all members that take a context, 0 where none does.

    Raises:
        ArgumentError: they take contexts of several sizes.
    """
    sizes = {size for size in (getattr(member, "context_features", 0) for member in members) if size}
    if len(sizes) > 1:
        raise ArgumentError.of("bijections", "of contexts of one size", f"sizes {sorted(sizes)}")
    return sizes.pop() if sizes else 0


def mapped(bijection: Any, x: Tensor, context: Tensor | None, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """What a bijection, or its inverse, makes of points, with the context if it takes one."""
    direction = bijection.inverse if inverse else bijection
    return direction(x, context) if context is not None and bijection.context_features else direction(x)


def given(context: Tensor | None) -> tuple[Tensor, ...]:
    """The arguments that follow the points."""
    return () if context is None else (context,)


def joint_batch(shape: Iterable[int], context: Tensor, of: str = "that of the points") -> tuple[int, ...]:
    """The batch shape of points and of a context together; `of` says in an error what else the batch is of.

    Raises:
        ArgumentError: they do not broadcast.
    """
    shape = tuple(shape)
    if context.shape[:-1] == shape:
        return shape
    try:
        return tuple(torch.broadcast_shapes(shape, context.shape[:-1]))
    except RuntimeError:
        expected = f"of a batch that broadcasts with {of}, {shape}"
        raise ArgumentError.of("context", expected, f"shape {tuple(context.shape)}") from None


def spread(x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Points `(..., n)` and a context `(..., c)` of one batch.

    Raises:
        ArgumentError: they do not broadcast, or have different dtypes.
    """
    if context.dtype != x.dtype:
        raise ArgumentError.of("context", f"of the dtype of the points, {x.dtype}", context.dtype)
    batch = joint_batch(x.shape[:-1], context)
    return x.expand(*batch, x.shape[-1]), context.expand(*batch, context.shape[-1])
