"""One property for many tensors of a model: those whose modules match a pattern, a type or a predicate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError
from p4torch.parametrize.registration import unregister
from p4torch.parametrize.sites import perturb, sites
from p4torch.parametrize.state_dict import unguard_checkpoints
from p4torch.parametrize.targets import joined, locate, paths, plain_parameter
from p4torch.parametrize.views import ViewLike

Model = TypeVar("Model", bound=nn.Module)
#: Which modules are meant; a tuple or a list of these: any of them.
Match = str | re.Pattern[str] | type[nn.Module] | Callable[[str, nn.Module], bool]
Matches = Match | Iterable[Match]

#: A module, the name of a tensor in it, its values, whether it trained.
_Before = tuple[nn.Module, str, Tensor, bool]

#: How many names an error lists.
_LISTED = 6


def perturb_all(
    model: Model,
    property: Callable[..., Perturbation],
    match: Matches,
    *,
    exclude: Matches = (),
    tensor_name: str = "weight",
    view: ViewLike = None,
    **options: Any,
) -> Model:
    """Put one property on a tensor of every module that matches: `p4.perturb_all(model, p4.Orthogonal, nn.Linear)`.

    It is `perturb` for each of them, all or none. Tied weights are perturbed once. Modules that match and have no such
    tensor, such as containers, are passed over.

    Args:
        model: what holds the modules.
        property: a class such as `Invertible`, or a function that makes a perturbation from a base.
        match: which modules, by their dotted paths or by themselves:
            a string: a glob for the path or for its end, from a dot on; "q_proj", "layers.*.mlp.*" (`*` takes dots,
            too);
            a compiled regular expression (`re.compile`), for the whole path;
            a module class, and those derived from it;
            a function `(path, module)` that returns whether it matches;
            several of these: any of them.
        exclude: modules to be left out, in the same words.
        tensor_name: of the tensor in each module.
        view, options: as for `perturb`.

    Returns:
        the model.

    Raises:
        ArgumentError: nothing matches, or one of the tensors cannot be perturbed; nothing has changed then.
    """
    chosen, excluded = _predicate("match", match), _predicate("exclude", exclude)
    locate(model, tensor_name)  # a model that can be perturbed
    names = list(_names(model, tensor_name, lambda path, module: chosen(path, module) and not excluded(path, module)))
    if not names:
        raise ArgumentError.of("match", f"one that modules with a `{tensor_name}` match", _known(model, tensor_name))
    first, undo = next(sites(model), None) is None, list[_Before]()
    try:
        for name in names:
            _perturb_one(model, name, undo, partial(perturb, property=property, view=view, **options))
    except BaseException:
        _restore(model, undo, first)
        raise
    return model


def _perturb_one(model: nn.Module, name: str, undo: list[_Before], put: Callable[..., object]) -> None:
    """The values from before are kept: admission may project them."""
    try:
        module, own_name = locate(model, name)
        tensor = plain_parameter(module, own_name)
        undo.append((module, own_name, tensor.detach(), tensor.requires_grad))
        put(model, name)
    except ArgumentError as error:
        raise ArgumentError(f"`{name}`: {error}") from error


def _restore(model: nn.Module, undo: list[_Before], first: bool) -> None:
    """The model as it was."""
    for module, name, values, trained in undo:
        unregister(module, name)
        tensor = plain_parameter(module, name)
        tensor.data = values
        tensor.requires_grad_(trained)
    for module in model.modules() if first else ():
        unguard_checkpoints(module)


# --- what matches -------------------------------------------------------------------------------------------------


def _names(model: nn.Module, tensor_name: str, chosen: Callable[[str, nn.Module], bool]) -> Iterator[str]:
    """Dotted paths of the tensors, each Parameter once. A perturbed tensor counts: `perturb` says what it thinks."""
    known = set[int]()
    for path, module in paths(model, every=True):
        if _has(path, module, tensor_name) and chosen(path, module):
            tensor = module._parameters.get(tensor_name)
            if tensor is None or id(tensor) not in known:
                known.add(id(tensor))
                yield joined(path, tensor_name)


def _has(path: str, module: nn.Module, tensor_name: str) -> bool:
    perturbed = "parametrizations" in module._modules and tensor_name in module.parametrizations  # type: ignore[operator]
    return "parametrizations" not in path.split(".") and (perturbed or module._parameters.get(tensor_name) is not None)


def _known(model: nn.Module, tensor_name: str) -> str:
    """For a message: the modules that there are."""
    names = [path or "the model itself" for path, module in paths(model) if _has(path, module, tensor_name)]
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"none of {', '.join(names[:_LISTED])}{more}" if names else f"a model that has no `{tensor_name}`"


def _predicate(name: str, match: Any) -> Callable[[str, nn.Module], bool]:
    """Whether a module matches, as a function of its path and itself."""
    if isinstance(match, str):
        return lambda path, module: fnmatchcase(path, match) or fnmatchcase(path, f"*.{match}")
    if isinstance(match, re.Pattern):
        return lambda path, module: match.fullmatch(path) is not None
    if isinstance(match, type) and issubclass(match, nn.Module):
        return lambda path, module: isinstance(module, match)
    if callable(match) and not isinstance(match, (type, nn.Module)):
        return lambda path, module: bool(match(path, module))
    if isinstance(match, Iterable):
        parts = [_predicate(name, part) for part in match]
        return lambda path, module: any(part(path, module) for part in parts)
    expected = "a glob, a compiled regular expression, a module class, a function of (path, module), or several of them"
    raise ArgumentError.of(name, expected, repr(match))
