"""The options that a property has, read from its signatures, for messages about others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from p4torch.core.low_rank import LowRankOptions
from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError

#: What a signature calls the options that all low-rank perturbations have.
_SHARED = "Unpack[LowRankOptions]"


def make(property: Callable[..., Any], base: Any, options: Mapping[str, Any]) -> Any:
    """What a property makes of a base. Raises ArgumentError for an option that it does not have, and lists those that
    it has."""
    try:
        return property(base, **options)
    except TypeError as error:
        if "keyword argument" in str(error):
            check_options(property, options)
        raise


def check_options(property: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise ArgumentError for an option that a property does not have, and list those that it has."""
    known = option_names(property)
    unknown = [name for name in options if name not in known]
    if unknown:
        named: Any = property.func if isinstance(property, partial) else property
        expected = f"those of {getattr(named, '__name__', 'the property')} ({', '.join(known) or 'it has none'})"
        raise ArgumentError.of("options", expected, ", ".join(unknown))


def options_of(property: Callable[..., Any], module: Any, tensor_name: str) -> dict[str, Any]:
    """What a module says of its tensor, for a property that asks; what a `partial` fixes stays."""
    kind, fixed = (property.func, property.keywords) if isinstance(property, partial) else (property, {})
    known = getattr(kind, "options_of", None)
    return {} if known is None else {**known(module, tensor_name), **fixed}


def event_dim_of(property: Callable[..., Any]) -> int:
    """That of a property before it is made; of a function that makes one, that of matrices."""
    return getattr(property.func if isinstance(property, partial) else property, "event_dim", 2)


def option_names(property: Callable[..., Any]) -> list[str]:
    """The options of a property, a class or a function that makes one, in the order of its signatures; all but the
    base."""
    if isinstance(property, partial):
        return option_names(property.func)
    if isinstance(property, type) and issubclass(property, Perturbation):
        kinds = vars(property).get("_kinds", {"": property})  # a class that picks one of these
        names = [name for kind in dict.fromkeys(kinds.values()) for name in _names_of_class(kind)]
    else:
        names = list(inspect.signature(property).parameters)
    return [name for name in dict.fromkeys(names) if name not in ("self", *names[:1], "base")]


def _names_of_class(kind: type[Perturbation]) -> Iterator[str]:
    """Those of its `__init__`, and of the next one's as long as they pass others on."""
    for parent in kind.__mro__:
        if "__init__" not in vars(parent):
            continue
        rest = False
        for name, parameter in inspect.signature(vars(parent)["__init__"]).parameters.items():
            if parameter.kind is not parameter.VAR_KEYWORD:
                yield name
            elif parameter.annotation == _SHARED:
                yield from LowRankOptions.__annotations__
            else:
                rest = True
        if not rest:
            return
