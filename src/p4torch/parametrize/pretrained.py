"""Hugging Face models: what `save_pretrained` writes of a perturbed one is a checkpoint of the plain model, too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from p4torch.parametrize.lookup import perturbations
from p4torch.parametrize.targets import chain_of

_METHOD = "save_pretrained"


def pretrained_models(module: nn.Module) -> Iterator[nn.Module]:
    """The Hugging Face models in a module, itself among them. Without `transformers` imported there are none."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is not None:
        yield from (model for model in module.modules() if isinstance(model, library.PreTrainedModel))


def guard_saves(module: nn.Module, *, perturbed: bool = True) -> None:
    """Make `save_pretrained` of the Hugging Face models in a module write effective weights, and the perturbations
    beside them or not. A plain model can be read from such a file by `from_pretrained`, and a perturbed one goes on
    where it was (`load_state_dict`). Models that are guarded already stay as they are."""
    for model in pretrained_models(module):
        if _METHOD not in vars(model):
            setattr(model, _METHOD, partial(save_pretrained, model, perturbed=perturbed))


def unguard_saves(module: nn.Module) -> None:
    """Take that back, for the module itself."""
    vars(module).pop(_METHOD, None)


def save_pretrained(
    model: nn.Module,
    save_directory: Any,
    is_main_process: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    *rest: Any,
    perturbed: bool = True,
    **options: Any,
) -> None:
    """`PreTrainedModel.save_pretrained` with effective weights."""
    state = effective_state(model, model.state_dict() if state_dict is None else state_dict, perturbed)
    getattr(type(model), _METHOD)(model, save_directory, is_main_process, state, *rest, **options)


@torch.no_grad()
def effective_state(model: nn.Module, state: dict[str, Tensor], perturbed: bool) -> dict[str, Tensor]:
    """A state with the effective weight of each site that is in it under its plain name. The base and the perturbation
    are kept at the first place of a tied weight only, or not at all."""
    weights: dict[nn.Module, Tensor] = {}
    plain, dropped = dict[str, Tensor](), list[str]()
    for path, module, tensor_name in _places(model):
        chain, prefix = chain_of(module, tensor_name), _prefix(path)
        inner, first = _inner(prefix, tensor_name), chain not in weights
        if first and inner + "original" not in state:
            continue
        if not perturbed or not first:
            dropped.append(inner)
        if first:
            weights[chain] = getattr(module, tensor_name).detach()
        plain[prefix + tensor_name] = weights[chain]
    return {key: value for key, value in state.items() if not key.startswith(tuple(dropped))} | plain


def leave_out_effective(module: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Before a state is loaded: where it holds the perturbation of a site, the effective weight is left out of it, in
    place."""
    perturbed: set[nn.Module] = set()
    for path, part, tensor_name in _places(module, prefix.removesuffix(".")):
        chain, own = chain_of(part, tensor_name), _prefix(path)
        if _inner(own, tensor_name) + "original" in state:
            perturbed.add(chain)
        if chain in perturbed:
            state.pop(own + tensor_name, None)


def _places(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, str]]:
    """All places of perturbed tensors, by the paths that a state has."""
    for path, module in model.named_modules(prefix=prefix, remove_duplicate=False):
        for tensor_name, _ in perturbations(module):
            yield path, module, tensor_name


def _prefix(path: str) -> str:
    return f"{path}." if path else ""


def _inner(prefix: str, tensor_name: str) -> str:
    return f"{prefix}parametrizations.{tensor_name}."
