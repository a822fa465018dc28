"""Which perturbation a tensor of a module has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from p4torch.core.perturbation import Perturbation
from p4torch.parametrize.freezing import frozen_base


class Unperturbed(Perturbation):
    """The identity, without any B: what a plain tensor has. All its answers are dense and exact."""

    def forward(self, base: Tensor) -> Tensor:
        return base

    def reset(self, generator: torch.Generator | None) -> None:
        """Nothing to reset."""

    def defect(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(self.skips)


_UNPERTURBED = Unperturbed(torch.zeros(1, 1))


def perturbation_of(module: nn.Module, tensor_name: str) -> tuple[Perturbation, Tensor]:
    """(perturbation, base) of a tensor, for modules that use it through `affine`, `solve`, `logabsdet`. A tensor that
    is plain, or is parametrized in another way besides, has the identity perturbation.

    It runs at every forward pass and looks into the tables of `parametrize` itself, which is many times faster than
    its attributes."""
    chains = module._modules.get("parametrizations")
    chain = chains._modules.get(tensor_name) if isinstance(chains, nn.ModuleDict) else None
    if chain is None or len(chain._modules) != 1:
        return _UNPERTURBED, getattr(module, tensor_name)
    perturbation = cast(Perturbation, chain._modules["0"])
    return perturbation, frozen_base(perturbation, cast(Tensor, chain._parameters["original"]))


def perturbations(module: nn.Module) -> Iterator[tuple[str, Perturbation]]:
    """The perturbed tensors of one module, without its children: their names and perturbations."""
    if "parametrizations" in module._modules:  # not by attribute: a compiled module shows those of the one inside
        for tensor_name, chain in cast(nn.ModuleDict, module.parametrizations).items():
            if isinstance(chain[0], Perturbation):  # type: ignore[index]
                yield tensor_name, chain[0]  # type: ignore[index]
