"""Attaching perturbations to modules by torch's `parametrize`, and detaching them without a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from p4torch.freezing import frozen_base
from p4torch.linear import FactoredLinear
from p4torch.perturbation import Perturbation
from p4torch.places import Place, perturbations
from p4torch.recurrent import Recurrent, recurrent_class

Convert = Callable[[type[nn.Module]], type[nn.Module]]
#: Where the order of a module's parameters is kept: in torch's table of parametrizations, which goes with the last.
_ORDER = "_order_before"


def attach(places: Sequence[Place], tensor: nn.Parameter, matrix: Tensor, parts: Sequence[nn.Module]) -> None:
    """Make `matrix` the frozen base of a parameter, and `parts`, one after the other, what leads from it to the
    module's tensor. All or nothing. A tied weight has several places: they share the base and the parts.
    """
    module, name = places[0]
    kinds = [type(module) for module, _ in places]
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
    _remember(module, order)
    tensor.requires_grad_(False)
    parts[0].register_forward_pre_hook(_freeze_base)
    for part in parts[1:]:
        parametrize.register_parametrization(module, name, part, unsafe=True)  # a view changes the shape
    chain = _table(module)[name]
    for module, name in places[1:]:
        order = _exchange(module, name)
        parametrize.register_parametrization(module, name, nn.Identity())
        _table(module)[name] = chain
        _remember(module, order)


def detach(module: nn.Module, tensor_name: str, evaluate: bool) -> None:
    """Make a tensor a plain Parameter again, with its effective value, or (not `evaluate`) with that of the base, which
    for tied weights is the effective one once the first place has been detached."""
    exchange_class(module, lambda kind: kind)  # a class of its own
    order = getattr(_table(module), _ORDER, ())
    parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=evaluate)
    parameters = module._parameters
    parameter = cast(nn.Parameter, parameters[tensor_name])
    parameter.data = parameter.data.contiguous()
    known = [name for name in order if name in parameters]
    for name in [*known, *(name for name in parameters if name not in known)]:
        parameters[name] = parameters.pop(name)
    if next(perturbations(module), None) is None:
        exchange_class(module, plain_class)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


def _freeze_base(perturbation: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Where the whole tensor is asked for, no gradient leads to the base."""
    return (frozen_base(cast(Perturbation, perturbation), inputs[0]), *inputs[1:])


def _table(module: nn.Module) -> nn.ModuleDict:
    return cast(nn.ModuleDict, module.parametrizations)


def _exchange(module: nn.Module, tensor_name: str) -> tuple[str, ...]:
    """Give a module the class for a perturbed tensor. The order of its parameters until now."""
    exchange_class(module, lambda plain: perturbed_class(plain, tensor_name))
    return tuple(module._parameters)


def _remember(module: nn.Module, order: tuple[str, ...]) -> None:
    if not hasattr(_table(module), _ORDER):
        setattr(_table(module), _ORDER, order)


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
    if not parametrize.is_parametrized(module):
        module.__class__ = convert(kind)
        return
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, tuple(convert(base) for base in kind.__bases__), own)
