"""Checkpoints of perturbed models: checked before anything is written, and plain tensors are accepted for sites."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError, CheckpointError
from p4torch.parametrize.lookup import perturbations
from p4torch.parametrize.pretrained import guard_saves, leave_out_effective, unguard_saves
from p4torch.parametrize.targets import chain_of


def guard_checkpoints(module: nn.Module) -> None:
    """Make `module.load_state_dict` check every site in the module before it writes anything, and accept plain tensors
    for them; and make `save_pretrained` of Hugging Face models in it write effective weights. `perturb` does it for the
    module it is given; `parameter_groups`, `merge` and a `MergeScheduler` for their model."""
    if not any(_is_guard(hook) for hook in module._load_state_dict_pre_hooks.values()):
        module.register_load_state_dict_pre_hook(_validate_checkpoint)
    guard_saves(module)


def unguard_checkpoints(module: nn.Module) -> None:
    """Take that back."""
    hooks = module._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if _is_guard(hook)]:
        del hooks[key]
    unguard_saves(module)


def _is_guard(hook: Any) -> bool:
    return getattr(hook, "hook", hook) is _validate_checkpoint


def _validate_checkpoint(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
) -> None:
    leave_out_effective(module, state, prefix)
    for path, child in module.named_modules(prefix=prefix.removesuffix(".")):
        for tensor_name, perturbation in perturbations(child):
            _validate_site(child, tensor_name, perturbation, state, f"{path}." if path else "")


def _validate_site(
    module: nn.Module, tensor_name: str, perturbation: Perturbation, state: dict[str, Any], prefix: str
) -> None:
    """Check the shapes of one site, and turn a plain `weight` into a base with B₀ and fresh tracked values."""
    inner = f"{prefix}parametrizations.{tensor_name}."
    plain = state.get(prefix + tensor_name)
    chain = chain_of(module, tensor_name)
    if plain is not None:
        matrix = _inwards(chain, plain, prefix + tensor_name)
        admitted = copy.deepcopy(perturbation)
        try:
            state[inner + "original"] = admitted.right_inverse(matrix.detach().to(chain.original))
        except ArgumentError as error:
            raise CheckpointError(f"`{prefix}{tensor_name}` in the checkpoint cannot be a base: {error}") from error
        state.update({f"{inner}0.{key}": value for key, value in admitted.state_dict().items()})
        del state[prefix + tensor_name]
    for key, value in chain.state_dict().items():
        saved = state.get(inner + key)
        if saved is not None and saved.shape != value.shape:
            raise _misfit(inner + key, value.shape, saved.shape)


@torch.no_grad()
def _inwards(chain: parametrize.ParametrizationList, tensor: Tensor, name: str) -> Tensor:
    """A tensor of the module as one of the perturbation: back through whatever stands behind it in the chain. As in
    torch, what has no `right_inverse` counts as the identity."""
    behind = [chain[index] for index in range(1, len(chain))]
    expected = chain().shape if behind else chain.original.shape
    if tensor.shape != expected:
        raise _misfit(name, expected, tensor.shape)
    for part in reversed(behind):
        if hasattr(part, "right_inverse"):
            tensor = part.right_inverse(tensor)  # type: ignore[operator]
    return tensor


def _misfit(name: str, expected: torch.Size, got: torch.Size) -> CheckpointError:
    return CheckpointError(f"`{name}` in the checkpoint must have shape {tuple(expected)}, got {tuple(got)}")
