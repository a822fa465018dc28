"""An optimizer's memory of a parameter: reset, moved or left alone after a merge, for any torch optimizer.

Everything happens in place, on the entries of the parameters given and of no others.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from p4torch import linalg
from p4torch.core.low_rank import LowRank
from p4torch.core.transaction import MergeReport
from p4torch.errors import OptimizerError
from p4torch.parametrize.sites import Site

#: What a merge does to the memory, see `p4torch.MergeScheduler`.
OptimizerState = Literal["reset_directions", "restart", "transport", "keep", "reset"]

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
#: The same, and the last gradient itself (Rprop).
_DIRECTED = (*_FIRST_MOMENTS, "prev")


def check_holds(optimizer: Optimizer, named: dict[str, nn.Parameter]) -> None:
    """Raise OptimizerError if the optimizer lacks some of the named parameters (it was built before `perturb`)."""
    missing = missing_parameters(optimizer, named)
    if missing:
        raise OptimizerError(
            f"`optimizer` must hold the parameters of every perturbation, but lacks {', '.join(missing)}: "
            "build it after `perturb`, from `model.parameters()` or `parameter_groups(model)`"
        )


def missing_parameters(optimizer: Optimizer, named: dict[str, nn.Parameter]) -> list[str]:
    """Which of the named parameters are in none of the optimizer's groups."""
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    return [name for name, value in named.items() if id(value) not in held]


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
            raise _unknown(optimizer, name, key, type(entry).__name__)
    return True


def _unknown(optimizer: Optimizer, name: str, key: str, got: object) -> OptimizerError:
    return OptimizerError(
        f"`optimizer` must keep tensors or numbers for {name}, got {got} under {key!r} "
        f"({type(optimizer).__name__}): use optimizer_state='keep'"
    )


@torch.no_grad()
def redraw(optimizer: Optimizer, parameter: nn.Parameter, name: str, batch: int = 0) -> bool:
    """For a parameter whose coordinates were redrawn at random: clear its momentum, and give all entries the mean of
    what the optimizer knows of the gradient's size, over all dimensions but the first `batch` ones. Step counters stay.
    False if there is no state yet.

    After a random permutation of the coordinates an entry's own history says nothing, but the mean still does: without
    it an adaptive optimizer would make steps of full size again.

    Raises OptimizerError for entries of which there is no mean.
    """
    state = optimizer.state.get(parameter)
    if not state:
        return False
    for key, entry in state.items():
        if not isinstance(entry, Tensor) or entry.dim() != parameter.dim():
            continue
        if not (entry.is_floating_point() or entry.is_complex()):
            raise _unknown(optimizer, name, key, entry.dtype)
        if key in _DIRECTED:
            entry.zero_()
        elif key == "ax":
            entry.copy_(parameter)
        elif entry.dim() > batch:
            entry.copy_(entry.mean(tuple(range(batch, entry.dim())), keepdim=True))
    return True


def has_nonfinite_state(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
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


def update_after_merge(
    optimizer: Optimizer,
    option: OptimizerState,
    site: Site,
    report: MergeReport,
    previous: dict[str, Tensor],
    steps: int,
) -> None:
    """Apply the option to the parameters of one merged site, after so many steps; `previous` are its directions before
    the merge.

    Raises OptimizerError if there are gradients but nothing was found to reset: another optimizer steps.
    """
    perturbation, b = site.perturbation, dict(site.perturbation.own_parameters())
    redrawn = {*perturbation.directions, *perturbation.permuted}
    if report.nonfinite or (report.merged and option == "reset"):
        stale = list(b)
    elif not report.merged or option == "keep":
        stale = []
    else:
        stale = [name for name in perturbation.directions if name not in perturbation.permuted]
    stale = [name for name in stale if b[name].requires_grad]
    done = [reset(optimizer, b[name], f"{site.name}.{name}") for name in stale]
    if report.merged and not report.nonfinite and option not in ("keep", "reset"):
        for name in perturbation.permuted:
            redraw(optimizer, b[name], f"{site.name}.{name}", _batch(site, b[name]))
        if option == "restart":
            for name in b.keys() - redrawn:
                transport(optimizer, b[name], None)
        elif option == "transport" and isinstance(perturbation, LowRank):
            for name, matrix in perturbation.transport(previous).items():
                transport(optimizer, b[name], matrix)
    forgotten = stale and not any(done) and any(b[name].grad is not None for name in stale)
    if forgotten and not missing_parameters(optimizer, {"": b[stale[0]]}) and has_state(optimizer, b[stale[0]]):
        raise OptimizerError(
            f"`optimizer` must keep state for {', '.join(f'{site.name}.{name}' for name in stale)}, but has none "
            f"after {steps} steps, though they have gradients: is it the optimizer that steps?"
        )


def _batch(site: Site, parameter: Tensor) -> int:
    """How many leading dimensions of a parameter are those of the stack of matrices."""
    stack = site.perturbation.skips.shape
    return len(stack) if parameter.shape[: len(stack)] == stack else 0
