"""An optimizer's memory of a parameter: reset, moved or left alone after a merge, for any torch optimizer.

Everything happens in place, on the entries of the parameters given and of no others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from p4torch import linalg
from p4torch.errors import OptimizerError

#: Entries whose initial value is not zero: by the group's option of that name, or a number.
_INITIAL: dict[str, str | float] = {
    "sum": "initial_accumulator_value",  # Adagrad
    "mu_product": 1.0,  # NAdam
    "step_size": "lr",  # Rprop
    "eta": "lr",  # ASGD
    "mu": 1.0,  # ASGD
}

#: Entries that are running means of the gradient itself: they point somewhere, and a linear map of the gradient acts
#: on them. All others (squares, counters, step sizes) say how large gradients are.
_FIRST_MOMENTS = ("exp_avg", "momentum_buffer", "grad_avg")


def check_holds(optimizer: Optimizer, named: dict[str, nn.Parameter]) -> None:
    """Raise OptimizerError if the optimizer lacks some of the named parameters (it was built before `perturb`)."""
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    missing = [name for name, value in named.items() if id(value) not in held]
    if missing:
        raise OptimizerError(
            f"`optimizer` must hold the parameters of every perturbation, but lacks {', '.join(missing)}: "
            "build it after `perturb`, from `model.parameters()` or `parameter_groups(model)`"
        )


def check_optimizer(optimizer: Optimizer, option: str) -> None:
    """Raise OptimizerError for an optimizer whose memory cannot be told apart by parameter."""
    if isinstance(optimizer, torch.optim.LBFGS) and option != "keep":
        raise OptimizerError(
            f"`optimizer_state` must be 'keep' for LBFGS, whose history is one for all parameters, got {option!r}"
        )


def has_state(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether the optimizer remembers anything of the parameters in the group of this one."""
    return any(optimizer.state.get(value) for value in _group(optimizer, parameter)["params"])


def _group(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(value is parameter for value in group["params"]):
            return group
    raise OptimizerError("`parameter` must be in one of the optimizer's groups")


@torch.no_grad()
def reset(optimizer: Optimizer, parameter: nn.Parameter, name: str) -> bool:
    """Bring a parameter's state to what it was before the first step. False if there is none yet.

    Raises OptimizerError for state that this function does not know how to reset, rather than leave it stale.
    """
    state = optimizer.state.get(parameter)
    if not state:
        return False
    group = _group(optimizer, parameter)
    for key, entry in state.items():
        initial = _INITIAL.get(key, 0.0)
        value = float(group.get(initial, 0.0)) if isinstance(initial, str) else initial
        if isinstance(entry, Tensor):
            entry.copy_(parameter) if key == "ax" else entry.fill_(value)
        elif isinstance(entry, (int, float)) and not isinstance(entry, bool):
            state[key] = type(entry)(value)
        elif entry is not None:
            raise OptimizerError(
                f"`optimizer` must keep tensors or numbers for {name}, got {type(entry).__name__} under {key!r} "
                f"({type(optimizer).__name__}): use optimizer_state='keep'"
            )
    return True


def poisoned(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether a parameter's state holds a number that is not finite: it would stay, and spoil or stop all steps."""
    entries = optimizer.state.get(parameter, {}).values()
    return any(not bool(entry.isfinite().all()) for entry in entries if isinstance(entry, Tensor))


@torch.no_grad()
def transport(optimizer: Optimizer, parameter: nn.Parameter, matrix: Tensor | None) -> bool:
    """Map a parameter's momentum `(..., n, k)` by a matrix `(..., k, k)` from the right, or clear it (None); what the
    optimizer knows of the gradient's size stays. False if there is no momentum yet.

    Squares of the gradient are not mapped: by C∘C those of new directions, orthogonal to the old ones, would become
    zero, and the next steps without bound.
    """
    state = optimizer.state.get(parameter, {})
    moments = [state[key] for key in _FIRST_MOMENTS if isinstance(state.get(key), Tensor)]
    for moment in moments:
        if matrix is None:
            moment.zero_()
        else:
            moment.copy_(linalg.in_double(moment) @ matrix)
    return bool(moments)
