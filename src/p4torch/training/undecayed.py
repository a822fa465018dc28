"""Parameters that must not decay, in an optimizer that somebody else made; its checkpoints stay as they were."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from p4torch.errors import OptimizerError

Parameters = list[list[Tensor]]


class Undecayed:
    """Moves parameters to the group that has no weight decay and is otherwise as theirs.

    There are as many groups as before, so that learning-rate schedules hold. A state of the optimizer has its former
    order: one that was just made, as it is made by default, loads it.

    Raises:
        OptimizerError: there is no such group.
    """

    def __init__(self, optimizer: Optimizer, parameters: Collection[Tensor]) -> None:
        moved = {id(value) for value in parameters}
        self.optimizer = optimizer
        self.before: Parameters = [list(group["params"]) for group in optimizer.param_groups]
        self.after: Parameters = [list(values) for values in self.before]
        for index, group in enumerate(optimizer.param_groups):
            movable = [value for value in self.before[index] if id(value) in moved]
            if movable and group.get("weight_decay"):
                self.after[index] = [value for value in self.before[index] if id(value) not in moved]
                self.after[self._without_decay(group)] += movable
        self._arrange(self.after)
        optimizer.register_state_dict_pre_hook(lambda optimizer: self._arrange(self.before))
        optimizer.register_state_dict_post_hook(lambda optimizer, state: self._arrange(self.after))
        optimizer.register_load_state_dict_pre_hook(lambda optimizer, state: self._arrange(self.before))
        optimizer.register_load_state_dict_post_hook(lambda optimizer: self._arrange(self.after))

    def _arrange(self, parameters: Parameters) -> None:
        for group, values in zip(self.optimizer.param_groups, parameters, strict=False):
            group["params"] = list(values)

    def _without_decay(self, group: dict[str, Any]) -> int:
        wanted = {**_options(group), "weight_decay": 0.0}
        for index, other in enumerate(self.optimizer.param_groups):
            if _options(other) == wanted:
                return index
        raise OptimizerError(
            f"`optimizer` must not decay perturbations, got weight_decay={group['weight_decay']} and no group without: "
            "it would pull towards the base. Build it from `p4.parameter_groups(model)`, and hand it over: "
            "`Trainer(..., optimizers=(optimizer, None))`"
        )


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
