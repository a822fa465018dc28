"""`nn.Linear` on the factored path: x R_B(A)ᵀ from the factors, without forming R_B(A) or its gradient."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from p4torch.perturbation import Perturbation


class FactoredLinear(nn.Linear):
    """An `nn.Linear` whose weight is perturbed. `perturb` swaps a layer's class for this one, `finalize` back."""

    def forward(self, input: Tensor) -> Tensor:
        found = sole_perturbation(self, "weight")
        if found is None:
            return super().forward(input)
        perturbation, base = found
        y = perturbation.matmul(base, input)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def sole_perturbation(module: nn.Module, tensor_name: str) -> tuple[Perturbation, Tensor] | None:
    """(perturbation, base) of a tensor that has this parametrization and no other."""
    if parametrize.is_parametrized(module, tensor_name):
        chain = cast(nn.ModuleDict, module.parametrizations)[tensor_name]
        if len(cast(nn.ModuleList, chain)) == 1:
            return cast(Any, chain)[0], cast(Any, chain).original
    return None


def factored_class(plain: type[nn.Module]) -> type[nn.Module]:
    """The class with the factored path, for exactly `nn.Linear`; subclasses may use their weight in other ways."""
    return FactoredLinear if plain is nn.Linear else plain


def plain_class(factored: type[nn.Module]) -> type[nn.Module]:
    """The inverse of `factored_class`."""
    return nn.Linear if factored is FactoredLinear else factored
