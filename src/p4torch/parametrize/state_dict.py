"""Checkpoints of perturbed models: checked before anything is written, and plain tensors are accepted for sites."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from p4torch.core.identity import KEY, check_identities
from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError, CheckpointError
from p4torch.parametrize.lookup import perturbations
from p4torch.parametrize.pretrained import guard_saves, leave_out_effective, unguard_saves
from p4torch.parametrize.targets import UNSAVED, chain_of


def guard_checkpoints(module: nn.Module) -> None:
    """Make `module.load_state_dict` check every site in the module before it writes anything, and accept plain tensors
    for them; and make `save_pretrained` of Hugging Face models in it write effective weights. `perturb` does it for the
    module it is given, and so does what that becomes a part of afterwards; `parameter_groups`, `merge` and a
    `MergeScheduler` do it for their model."""
    if not is_guarded(module):
        module.register_load_state_dict_pre_hook(_validate_checkpoint)
    guard_saves(module)


def is_guarded(module: nn.Module) -> bool:
    """Whether it does."""
    return any(_is_guard(hook) for hook in module._load_state_dict_pre_hooks.values())


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
    parts = {f"{path}." if path else "": part for path, part in _parts(module, prefix)}
    for path, part in parts.items():
        for tensor_name, perturbation in perturbations(part):
            _admit_plain(part, tensor_name, perturbation, state, path)
    check_identities(parts, state)
    for path, part in parts.items():
        for tensor_name, _ in perturbations(part):
            _check_shapes(part, tensor_name, state, path)


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """All modules inside, by their paths in the state: those that torch's wrappers leave out of it are left out."""
    for path, part in module.named_modules(prefix=prefix.removesuffix("."), remove_duplicate=False):
        yield ".".join(name for name in path.split(".") if name not in UNSAVED), part


def _admit_plain(
    module: nn.Module, tensor_name: str, perturbation: Perturbation, state: dict[str, Any], prefix: str
) -> None:
    """Turn a plain `weight` into a base with B₀ and fresh tracked values."""
    inner = f"{prefix}parametrizations.{tensor_name}."
    plain = state.get(prefix + tensor_name)
    chain = chain_of(module, tensor_name)
    if plain is not None:
        if chain.original.is_meta:
            raise CheckpointError(
                f"`{prefix}{tensor_name}` in the checkpoint must be of a perturbed model, since this one is on meta, "
                "without values of B; got a plain tensor: load it before `perturb`"
            )
        matrix = inwards(chain, plain, prefix + tensor_name)
        admitted = copy.deepcopy(perturbation)
        try:
            state[inner + "original"] = admitted.right_inverse(matrix.detach().to(chain.original))
        except ArgumentError as error:
            raise CheckpointError(f"`{prefix}{tensor_name}` in the checkpoint cannot be a base: {error}") from error
        state.update({f"{inner}0.{key}": value for key, value in admitted.state_dict().items()})
        del state[prefix + tensor_name]


def _check_shapes(module: nn.Module, tensor_name: str, state: dict[str, Any], prefix: str) -> None:
    """Of one site."""
    inner = f"{prefix}parametrizations.{tensor_name}."
    for key, value in chain_of(module, tensor_name).state_dict().items():
        saved = state.get(inner + key)
        if saved is None or key.endswith(KEY):
            continue
        if saved.shape != value.shape:
            raise _misfit(inner + key, value.shape, saved.shape)
        if saved.is_complex() != value.is_complex():
            expected = "complex" if value.is_complex() else "real"
            raise CheckpointError(f"`{inner}{key}` in the checkpoint must be {expected}, got {saved.dtype}")


@torch.no_grad()
def inwards(chain: parametrize.ParametrizationList, tensor: Tensor, name: str) -> Tensor:
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
