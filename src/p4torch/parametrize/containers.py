"""What perturbed modules are put into: a container checks its checkpoints, too, and torch's averages are refused."""

from __future__ import annotations

from functools import cache

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim.swa_utils import AveragedModel

from p4torch.errors import ArgumentError
from p4torch.parametrize.lookup import perturbations
from p4torch.parametrize.state_dict import guard_checkpoints, is_guarded


@cache
def watch_containers() -> None:
    """From the first perturbation on, look at modules that become parts of others."""
    register_module_module_registration_hook(_look)


def _look(container: nn.Module, name: str, part: nn.Module | None) -> None:
    """Means of A and of B, each by itself, do not make an element of S. `AveragedModel` copies a model to write such
    means into it, also for Lightning's `WeightAveraging`.

    Raises:
        ArgumentError: for an `AveragedModel` of a perturbed model.
    """
    if not isinstance(part, nn.Module):
        return
    if isinstance(container, AveragedModel) and type(container).update_parameters is AveragedModel.update_parameters:
        for module in part.modules():
            for tensor_name, _ in perturbations(module):
                got = f"one with a perturbed `{tensor_name}` in {type(module).__name__}: base and B would be averaged "
                got += "one by one. p4torch.training.WeightAverage averages what they make, and keeps the property"
                raise ArgumentError.of("model", "a plain model, for torch's AveragedModel", got)
    if is_guarded(part):
        guard_checkpoints(container)
