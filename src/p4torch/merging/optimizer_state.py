"""An optimizer's memory of a parameter: reset, moved or left alone after a merge, for any torch optimizer.

Only the entries of the parameters given change. It happens in place where it is known what an entry means; where it is
not (preconditioners, say), a reset drops the parameter's entries, and the optimizer makes them anew at its next step.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from p4torch import linalg
from p4torch.core.transaction import MergeReport
from p4torch.errors import ArgumentError, OptimizerError
from p4torch.parametrize.sharding import is_sharded, local, rows
from p4torch.parametrize.sites import Site

#: What a merge does to the memory, see `p4torch.MergeScheduler`.
OptimizerState = Literal["reset_directions", "restart", "transport", "keep", "reset"]

#: Sums of entries of an optimizer's state over all of a parameter, by its name and theirs.
Sums = dict[tuple[str, str], Tensor]

#: Entries whose initial value is not zero: by the group's option of that name, or a number.
_INITIAL: dict[str, str | float] = {
    "sum": "initial_accumulator_value",  # Adagrad
    "mu_product": 1.0,  # NAdam
    "step_size": "lr",  # Rprop
    "eta": "lr",  # ASGD
    "mu": 1.0,  # ASGD
}

#: Entries that are running means of the gradient itself: they point somewhere, and a linear map of the gradient acts
#: on them.
_FIRST_MOMENTS = ("exp_avg", "momentum_buffer", "grad_avg")
#: The same, and the last gradient itself (Rprop).
_DIRECTED = (*_FIRST_MOMENTS, "prev")
#: Entries that say how large gradients are, or count steps; zero at first.
_SIZES = (
    "step",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_inf",
    "square_avg",
    "acc_delta",
    "row_var",
    "col_var",
    "variance",
)

#: Under which names optimizers have what they wrap.
_WRAPPED = ("optimizer", "base_optimizer", "base")

#: Entries that are values of the parameter: an average, the iterate that steps are made from, the value at the start.
#: With the option that the optimizer's groups have if the entry is that.
_ITERATES: dict[str, str | None] = {
    "ax": None,  # ASGD
    "z": "weight_sum",  # schedule-free optimizers
    "slow_params": None,  # Lookahead
    "p0": "d0",  # Prodigy
}


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
    """Raise OptimizerError for an optimizer whose memory cannot be told apart by parameter, or not be found yet."""
    if _shares_state(optimizer) and not hasattr(optimizer, "optim"):
        raise OptimizerError(
            "`optimizer` must keep state from the start: ZeroRedundancyOptimizer without overlap_with_ddp"
        )
    optimizer = inner(optimizer)
    if isinstance(optimizer, torch.optim.LBFGS) and option != "keep":
        raise OptimizerError(
            f"`optimizer_state` must be 'keep' for LBFGS, whose history is one for all parameters, got {option!r}"
        )


def inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer that keeps the state: of a ZeroRedundancyOptimizer the one for the part of this process."""
    return cast(Any, optimizer).optim if _shares_state(optimizer) else optimizer


def _shares_state(optimizer: Optimizer) -> bool:
    module: Any = sys.modules.get("torch.distributed.optim")
    return isinstance(optimizer, getattr(module, "ZeroRedundancyOptimizer", ()))


def _group(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(value is parameter for value in group["params"]):
            return group
    raise OptimizerError("`parameter` must be in one of the optimizer's groups")


def unwrapped(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and what it wraps (accelerate, Lightning, Lookahead, schedule-free), the one that steps last. Raises
    ArgumentError if that is no torch optimizer."""
    chain: list[Any] = [optimizer]
    while wrapped := next((getattr(chain[-1], name) for name in _WRAPPED if hasattr(chain[-1], name)), None):
        chain.append(wrapped)
    if not isinstance(chain[-1], Optimizer):
        raise ArgumentError.of("optimizer", "a torch optimizer", type(chain[-1]).__name__)
    return chain


@torch.no_grad()
def reset(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Bring a parameter's state to what it was before the first step. False if there is none yet."""
    state = optimizer.state.get(parameter)
    if not state:
        return False
    group = _group(optimizer, parameter)
    if any(not _is_known(key, entry, group) for key, entry in state.items()):
        del optimizer.state[parameter]
        return True
    for key, entry in _local(state):
        initial = _INITIAL.get(key, 0.0)
        value = float(group.get(initial, 0.0)) if isinstance(initial, str) else initial
        if isinstance(entry, Tensor):
            entry.fill_(value)
        elif entry is not None:
            state[key] = type(entry)(value)
    _follow(state, parameter, group)
    return True


def _is_known(key: str, entry: Any, group: dict[str, Any]) -> bool:
    """Whether it is known what an entry of the state means."""
    named = key in _INITIAL or key in _DIRECTED or key in _SIZES or _is_iterate(key, group)
    number = isinstance(entry, (int, float)) and not isinstance(entry, bool)
    return entry is None or (named and (number or isinstance(entry, Tensor)))


def _is_iterate(key: str, group: dict[str, Any]) -> bool:
    return key in _ITERATES and (_ITERATES[key] is None or _ITERATES[key] in group)


@torch.no_grad()
def follow(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    """Values of the parameter that the optimizer keeps take the one that the parameter has now: steps and averages
    start from there."""
    state = optimizer.state.get(parameter)
    if state:
        _follow(state, parameter, _group(optimizer, parameter))


def _follow(state: dict[str, Any], parameter: nn.Parameter, group: dict[str, Any]) -> None:
    for key, entry in _local(state):
        if _is_iterate(key, group):
            value = local(parameter)
            if entry.shape == value.shape:
                entry.copy_(value)
            else:  # Prodigy keeps every so manieth number
                entry.copy_(value.flatten()[:: group.get("slice_p", 1)].view_as(entry))


@torch.no_grad()
def redraw(
    optimizer: Optimizer, parameter: nn.Parameter, batch: int = 0, sums: dict[str, Tensor] | None = None
) -> bool:
    """For a parameter whose coordinates were redrawn at random: clear its momentum, and give all entries the mean of
    what the optimizer knows of the gradient's size, over all dimensions but the first `batch` ones. Step counters stay.
    False if there is no state yet. `sums` are those of entries, by name, that other processes hold parts of.

    After a random permutation of the coordinates an entry's own history says nothing, but the mean still does: without
    it an adaptive optimizer would make steps of full size again. Where there are entries of which it is not known what
    they mean, all are reset.
    """
    state = optimizer.state.get(parameter)
    if not state:
        return False
    group = _group(optimizer, parameter)
    if any(not _is_known(key, entry, group) for key, entry in state.items()):
        return reset(optimizer, parameter)
    for key, entry in _local(state):
        if not isinstance(entry, Tensor) or entry.dim() != parameter.dim() or _is_iterate(key, group):
            continue
        if key in _DIRECTED:
            entry.zero_()
        elif sums and key in sums:
            entry.copy_(sums[key] / parameter.numel())
        elif entry.dim() > batch:
            entry.copy_(entry.mean(tuple(range(batch, entry.dim())), keepdim=True))
    return True


@torch.no_grad()
def sums_of_shards(optimizer: Optimizer, sites: Sequence[Site]) -> Sums:
    """What `redraw` needs of all processes, where a parameter is sharded and not a stack: the sum of the part that this
    one holds, by the parameter's full name and the name of the entry."""
    optimizer, sums = inner(optimizer), Sums()
    for site in sites:
        for name, value in site.perturbation.own_parameters():
            if name in site.perturbation.permuted and is_sharded(value) and not _batch(site, value):
                for key, entry in _local(optimizer.state.get(value, {})):
                    if isinstance(entry, Tensor) and entry.dim() == value.dim() and key in (*_SIZES, *_INITIAL):
                        sums[f"{site.name}.{name}", key] = linalg.in_double(entry).sum()
    return sums


def _local(state: dict[str, Any]) -> list[tuple[str, Any]]:
    """The entries of a state; of sharded ones the part of this process."""
    return [(key, local(entry) if isinstance(entry, Tensor) else entry) for key, entry in state.items()]


def has_finite_state(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor:
    """Whether all numbers of a parameter's state are finite, `()`: others would stay, and spoil or stop all steps."""
    entries = [entry for _, entry in _local(inner(optimizer).state.get(parameter, {})) if isinstance(entry, Tensor)]
    masks = [entry.isfinite().all().to(parameter.device) for entry in entries]
    return torch.stack(masks).all() if masks else torch.ones((), dtype=torch.bool, device=parameter.device)


@torch.no_grad()
def transport(optimizer: Optimizer, parameter: nn.Parameter, matrix: Tensor | None) -> bool:
    """Map a parameter's momentum `(..., n, k)` by a matrix `(..., k, k)` from the right, or clear it (None); what the
    optimizer knows of the gradient's size stays. False if there is no momentum yet.

    Squares of the gradient are not mapped: by C∘C those of new directions, orthogonal to the old ones, would become
    zero, and the next steps without bound.
    """
    state = dict(_local(optimizer.state.get(parameter, {})))
    moments = [state[key] for key in _FIRST_MOMENTS if isinstance(state.get(key), Tensor)]
    if matrix is not None and is_sharded(parameter) and matrix.dim() > 2:
        matrix = matrix.narrow(0, *rows(parameter))
    for moment in moments:
        if matrix is None:
            moment.zero_()
        else:
            moment.copy_(linalg.in_double(moment) @ matrix)
    return bool(moments)


def update_after_merge(
    optimizers: Sequence[Optimizer],
    option: OptimizerState,
    site: Site,
    report: MergeReport,
    maps: dict[str, Tensor],
    sums: Sums | None = None,
) -> list[str]:
    """Apply the option to the parameters of one merged site. `maps` are those of `transport`, by the names of
    parameters; `sums` see `redraw`. Of `optimizers`, each wraps the next: the last one steps. The full names of the
    parameters whose memory was reset."""
    optimizers = [inner(each) for each in optimizers]
    optimizer, perturbation, b = optimizers[-1], site.perturbation, dict(site.perturbation.own_parameters())
    redrawn = {*perturbation.directions, *perturbation.permuted}
    if report.nonfinite or (report.merged and option == "reset"):
        stale = list(b)
    elif not report.merged or option == "keep":
        stale = []
    else:
        stale = [name for name in perturbation.directions if name not in perturbation.permuted]
    for name in stale:
        if b[name].requires_grad:
            reset(optimizer, b[name])
    if report.merged and not report.nonfinite and option not in ("keep", "reset"):
        for name in perturbation.permuted:
            known = {key: value for (owner, key), value in (sums or {}).items() if owner == f"{site.name}.{name}"}
            redraw(optimizer, b[name], _batch(site, b[name]), known)
        if option == "restart":
            for name in b.keys() - redrawn:
                transport(optimizer, b[name], None)
        elif option == "transport":
            for name, matrix in maps.items():
                transport(optimizer, b[name], matrix)
    if report.merged or report.nonfinite:
        for each in optimizers:
            for value in b.values():
                follow(each, value)
    return [f"{site.name}.{name}" for name in stale if b[name].requires_grad]


def _batch(site: Site, parameter: Tensor) -> int:
    """How many leading dimensions of a parameter are those of the stack of matrices."""
    stack = site.perturbation.skips.shape
    return len(stack) if parameter.shape[: len(stack)] == stack else 0
