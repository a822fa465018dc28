"""Registering perturbations with torch's `parametrize`, and removing them without a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from p4torch.core.perturbation import Perturbation
from p4torch.parametrize.effective import read_only
from p4torch.parametrize.freezing import frozen_base
from p4torch.parametrize.linear import FactoredLinear
from p4torch.parametrize.lookup import perturbations
from p4torch.parametrize.recurrent import Recurrent, recurrent_class
from p4torch.parametrize.targets import Target
from p4torch.parametrize.views import View

Convert = Callable[[type[nn.Module]], type[nn.Module]]
#: What is kept in torch's table of a module's parametrizations, and goes with the last of them: the order of its
#: parameters before the first; and by name what each tensor is made from, and all places that have it.
_ORDER, _REGISTERED = "_order_before", "_registered"


def register(targets: Sequence[Target], tensor: nn.Parameter, matrix: Tensor, parts: Sequence[nn.Module]) -> None:
    """Make `matrix` the frozen base of a parameter, and `parts`, one after the other, what leads from it to the
    module's tensor. All or nothing. A tied weight has several targets: they share the base and the parts.
    """
    module, name = targets[0]
    kinds = [type(module) for module, _ in targets]
    values, gradient = tensor.detach(), tensor.grad
    try:
        tensor.grad = None
        tensor.data = matrix
        order = _exchange(module, name)
        parametrize.register_parametrization(module, name, parts[0])
    except BaseException:
        module.__class__ = kinds[0]
        tensor.data, tensor.grad = values, gradient
        raise
    chain = _table(module)[name]
    _remember(module, name, order, targets)
    tensor.requires_grad_(False)
    parts[0].register_forward_pre_hook(_freeze_base)
    for part in parts[1:]:
        parametrize.register_parametrization(module, name, part, unsafe=True)  # a view changes the shape
    for module, name in targets[1:]:
        order = _exchange(module, name)
        parametrize.register_parametrization(module, name, nn.Identity())
        _table(module)[name] = chain
        _remember(module, name, order, targets)


def unregister(module: nn.Module, tensor_name: str) -> None:
    """Make a tensor a plain Parameter again, with its effective value, in all its places. Nothing if it is one."""
    if parametrize.is_parametrized(module, tensor_name):
        parametrize.remove_parametrizations(module, tensor_name)


def _freeze_base(perturbation: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Where the whole tensor is asked for, no gradient leads to the base."""
    return (frozen_base(cast(Perturbation, perturbation), inputs[0]), *inputs[1:])


def _table(module: nn.Module) -> nn.ModuleDict:
    return cast(nn.ModuleDict, module.parametrizations)


def _exchange(module: nn.Module, tensor_name: str) -> tuple[str, ...]:
    """Give a module the class for a perturbed tensor. The order of its parameters until now."""
    exchange_class(module, lambda plain: perturbed_class(plain, tensor_name))
    return tuple(module._parameters)


def _remember(module: nn.Module, tensor_name: str, order: tuple[str, ...], targets: Sequence[Target]) -> None:
    """What is needed when torch removes the parametrization, which it says by registering the tensor again."""
    table = _table(module)
    if not hasattr(table, _ORDER):
        setattr(table, _ORDER, order)
        setattr(table, _REGISTERED, {})
    getattr(table, _REGISTERED)[tensor_name] = table[tensor_name], list(targets)
    kind = type(module)
    setattr(kind, tensor_name, read_only(vars(kind)[tensor_name]))
    setattr(kind, "register_parameter", _register_parameter)  # noqa: B010 - of this class alone
    setattr(kind, f"_{tensor_name}_property", vars(kind)[tensor_name])


def _register_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """`module.register_parameter`, of perturbed modules."""
    owner = next(kind for kind in type(module).__mro__ if vars(kind).get("register_parameter") is _register_parameter)
    cast(Any, super(owner, module)).register_parameter(name, parameter)
    table = _table(module)
    registered = None if name in table else getattr(table, _REGISTERED, {}).pop(name, None)
    if registered is not None and parameter is not None:
        chain, targets = registered
        _restore(module, name, parameter, *chain)
        for other, other_name in targets:  # a tied weight stays one
            if other is module and other_name in table:  # torch has not done with this module yet
                delattr(type(module), other_name)
                del table[other_name]
                module.register_parameter(other_name, parameter)
            elif parametrize.is_parametrized(other, other_name):
                parametrize.remove_parametrizations(other, other_name, leave_parametrized=False)


@torch.no_grad()
def _restore(module: nn.Module, name: str, parameter: nn.Parameter, perturbation: Any, *views: nn.Module) -> None:
    """What torch's `remove_parametrizations` leaves to be done: a tensor of the module's shape, that trains if it did
    before and B does; the order of the parameters; the plain class."""
    for view in views:
        if isinstance(view, View) and parameter.shape != view.tensor_shape:
            parameter.data = view(parameter)
    parameter.data = parameter.data.contiguous()
    parameter.requires_grad_(perturbation.trainable and any(perturbation.training_parameters()))
    parameters, order = module._parameters, getattr(_table(module), _ORDER)
    known = [key for key in order if key in parameters]
    for key in [*known, *(key for key in parameters if key not in known)]:
        parameters[key] = parameters.pop(key)
    kind, last = type(module), next(perturbations(module), None) is None
    exchange_class(module, plain_class if last else lambda kind: kind)
    setattr(kind, name, vars(kind)[f"_{name}_property"])  # deep copies share the class
    if last and isinstance(module, nn.RNNBase):
        module._init_flat_weights()


# --- classes ------------------------------------------------------------------------------------------------------


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
    if "parametrizations" not in module._modules:
        module.__class__ = convert(kind)
        return
    members = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, tuple(convert(base) for base in kind.__bases__), members)
