"""What never trains: bases, what is tracked beside them, and parameters of B that do not train by design.

They are frozen Parameters, and `requires_grad_(True)` on a model, or a callback that unfreezes layers, thaws them. So
forward passes freeze them again, and so does a `MergeScheduler` before each optimizer step.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError
from p4torch.linalg.reference import transformed


def frozen_parameters(perturbation: Perturbation) -> Iterator[nn.Parameter]:
    """What is tracked, and parameters of B that do not train by design."""
    for name, value in perturbation.named_parameters():
        if "." in name or name in perturbation.untrained:
            yield value


def keep_frozen(perturbation: Perturbation, base: Tensor) -> None:
    """Freeze the base, what is tracked, and what does not train by design."""
    for value in (base, *frozen_parameters(perturbation)):
        refreeze(value)


def refreeze(value: Tensor) -> None:
    """No gradient, neither now nor later."""
    if value.requires_grad:
        value.requires_grad_(False)
    if value.grad is not None:
        value.grad = None


def frozen_base(perturbation: Perturbation, base: Tensor) -> Tensor:
    """The base for a forward pass: no gradient leads to it.

    Raises:
        ArgumentError: B has another dtype.
    """
    for value in perturbation._parameters.values():
        if value is not None and value.dtype != base.dtype:
            got = f"B {value.dtype} beside a base {base.dtype}: `module.to(dtype)` moves both"
            raise ArgumentError.of(perturbation.tensor_name, "perturbed in one dtype", got)
    if not base.requires_grad or not isinstance(base, nn.Parameter):
        return base
    if transformed():
        return base.detach()
    keep_frozen(perturbation, base)
    return base
