"""A bias beside an equivariant weight: the layer is equivariant only if the bias is invariant, and stays so."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError

Property = Callable[[Tensor], Perturbation]


def companions(module: nn.Module, tensor_name: str, size: int, property: Property) -> dict[str, Property]:
    """The bias of a weight, if it is a plain one that trains, and the property that keeps it invariant.

    Raises:
        ArgumentError: no bias but 0 is invariant.
    """
    name, bias = bias_of(module, tensor_name)
    if bias is None or bias.shape != (size,) or parametrize.is_parametrized(module, name) or not bias.requires_grad:
        return {}
    try:
        property(torch.zeros(size, 1))
    except ArgumentError as error:
        expected = "made with bias=False: no bias but 0 is invariant under the representation of its outputs"
        raise ArgumentError.of("module", expected, f"one with a `{name}`") from error
    return {name: property}


def warning_for(
    module: nn.Module, tensor_name: str, matrices: Tensor, factors: Tensor, kind: type[Perturbation]
) -> str | None:
    """What is wrong with a bias that is not invariant, L_g b = c_g b, or would not stay so; None if nothing is."""
    name, bias = bias_of(module, tensor_name)
    if bias is None or _stays(module, name, bias, kind, matrices, factors):
        return None
    return (
        f"the layer is not equivariant, since nothing keeps its `{name}` b at ρ_out(g) b = b. Make the layer with "
        f"bias=False, or with a bias that is 0 and does not train"
    )


def bias_of(module: nn.Module, tensor_name: str) -> tuple[str, Tensor | None]:
    """The name of the bias of a weight, and the bias."""
    name = tensor_name.replace("weight", "bias")
    bias = getattr(module, name, None)
    return name, bias if name != tensor_name and isinstance(bias, Tensor) else None


def _stays(
    module: nn.Module, name: str, bias: Tensor, kind: type[Perturbation], matrices: Tensor, factors: Tensor
) -> bool:
    """Whether a bias is invariant, and stays so: frozen, or perturbed inside the invariant vectors."""
    if parametrize.is_parametrized(module, name):
        trains = not isinstance(module.parametrizations[name][0], kind)  # type: ignore[index]
    else:
        trains = bias.requires_grad
    if trains or bias.shape != matrices.shape[-1:]:
        return False
    if bias.is_meta:
        return True
    exact, matrices, factors = bias.detach().double(), matrices.to(bias.device), factors.to(bias.device)
    deviation = (matrices.double() @ exact - factors.double()[:, None] * exact).abs().amax()
    return bool(deviation <= torch.finfo(bias.dtype).eps ** 0.5 * exact.abs().amax())
