"""`nn.Linear` on the factored path: x R_B(A)ᵀ from the factors, without forming R_B(A) or its gradient."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from p4torch._options import check_tensor
from p4torch.core.perturbation import Perturbation
from p4torch.parametrize.freezing import frozen_base


class FactoredLinear(nn.Linear):
    """An `nn.Linear` whose weight is perturbed. `perturb` swaps a layer's class for this one, `finalize` back."""

    def forward(self, input: Tensor) -> Tensor:
        found = sole_perturbation(self, "weight")
        if found is None:
            return super().forward(input)
        check_tensor("input", input)
        perturbation, base = found
        return perturbation.affine(base, input, self.bias)


def sole_perturbation(module: nn.Module, tensor_name: str) -> tuple[Perturbation, Tensor] | None:
    """(perturbation, base) of a tensor that has this parametrization and no other. Runs at every forward pass, so it
    looks into the tables of `parametrize` itself, which is many times faster than its attributes."""
    chains = module._modules.get("parametrizations")
    chain = chains._modules.get(tensor_name) if isinstance(chains, nn.ModuleDict) else None
    if chain is None or len(chain._modules) != 1:
        return None
    perturbation = cast(Perturbation, chain._modules["0"])
    return perturbation, frozen_base(perturbation, cast(Tensor, chain._parameters["original"]))
