"""Effective weights as modules hand them out: computed, so that what is written into them would be lost."""

from __future__ import annotations

import copy
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from p4torch.errors import ArgumentError
from p4torch.linalg.reference import transformed

#: Methods that write nothing of the tensor's numbers, although their names end like that.
_HARMLESS = {"detach_", "requires_grad_", "rename_", "share_memory_"}


class _AnyTensor(type(Tensor)):  # type: ignore[misc]
    """`torch.testing.assert_close` compares two tensors where one is an instance of the other's class."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Tensor)


class EffectiveWeight(Tensor, metaclass=_AnyTensor):
    """R_B(A), in all ways a tensor but one: methods that write into it raise ArgumentError. What operations return is
    a plain tensor.

    `module.weight = value` replaces it, and so does `module.weight += value` under `torch.no_grad()`.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:
        return cast(Any, Tensor.data).__get__(self).as_subclass(EffectiveWeight)

    @data.setter
    def data(self, value: Tensor) -> None:
        _refuse("data")

    def view_as(self, other: Tensor) -> Tensor:
        return super().view_as(other).as_subclass(EffectiveWeight)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(self.as_subclass(Tensor), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return repr(self.as_subclass(Tensor))


def read_only(value: property) -> property:
    """The property of a parametrized tensor that hands out an EffectiveWeight, where nothing is compiled, transformed,
    traced, or kept in torch's cache."""

    def get(module: Any) -> Any:
        tensor = cast(Any, value.fget)(module)
        if type(tensor) is not Tensor or transformed() or torch._C._get_tracing_state() or parametrize._cache_enabled:
            return tensor
        return tensor.as_subclass(EffectiveWeight)

    return property(get, value.fset)


def _refuse(method: str) -> NoReturn:
    expected = "left as it is, since it is computed: what is written into it is lost. Assign a new one instead, "
    expected += "`module.weight = value`, or `finalize` the model first"
    raise ArgumentError.of("weight", expected, f"`{method}` on a perturbed weight")


def _refusing(name: str) -> Any:
    def method(self: Tensor, *arguments: Any, **options: Any) -> NoReturn:
        _refuse(name)

    return method


for _name in ("__setitem__", *(name for name in dir(Tensor) if name.endswith("_") and not name.startswith("_"))):
    if _name not in _HARMLESS:
        setattr(EffectiveWeight, _name, _refusing(_name))
