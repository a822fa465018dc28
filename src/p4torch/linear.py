"""`nn.Linear` on the factored path: x R_B(A)ᵀ from the factors, without forming R_B(A) or its gradient."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from p4torch.perturbation import Perturbation


class FactoredLinear(nn.Linear):
    """An `nn.Linear` whose weight is perturbed. `perturb` swaps a layer's class for this one, `finalize` back."""

    def forward(self, input: Tensor) -> Tensor:
        chain = self.parametrizations.weight  # type: ignore[union-attr]
        y = cast(Perturbation, chain[0]).matmul(cast(Tensor, chain.original), input)  # type: ignore[index, union-attr]
        return y if self.bias is None else y + self.bias.to(y.dtype)


def factored_class(plain: type[nn.Module]) -> type[nn.Module]:
    """The class with the factored path, for exactly `nn.Linear`; subclasses may use their weight in other ways."""
    return FactoredLinear if plain is nn.Linear else plain


def plain_class(factored: type[nn.Module]) -> type[nn.Module]:
    """The inverse of `factored_class`."""
    return nn.Linear if factored is FactoredLinear else factored
