"""Classes of perturbed modules: `perturb` exchanges a module's class for one that knows, `finalize` changes it back."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrize

from p4torch.linear import FactoredLinear
from p4torch.recurrent import Recurrent, recurrent_class

Convert = Callable[[type[nn.Module]], type[nn.Module]]


def perturbed_class(plain: type[nn.Module], tensor_name: str) -> type[nn.Module]:
    """The class for a perturbed tensor. The factored path is for exactly `nn.Linear`; subclasses may use their weight
    in other ways."""
    if plain is nn.Linear and tensor_name == "weight":
        return FactoredLinear
    if issubclass(plain, nn.RNNBase) and not issubclass(plain, Recurrent):
        return recurrent_class(plain)
    return plain


def plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The inverse of `perturbed_class`."""
    if issubclass(kind, Recurrent):
        return kind.plain
    return nn.Linear if kind is FactoredLinear else kind


def exchange_class(module: nn.Module, convert: Convert) -> None:
    """Exchange the class of a module, beneath the one that torch's `parametrize` puts on top of it.

    That one gets a copy of its own: deep copies share it, and taking a parametrization off one module would take the
    tensor from the others.
    """
    kind = type(module)
    if not parametrize.is_parametrized(module):
        module.__class__ = convert(kind)
        return
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, tuple(convert(base) for base in kind.__bases__), own)
