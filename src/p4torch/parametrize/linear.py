"""`nn.Linear` on the factored path: x R_B(A)ᵀ from the factors, without forming R_B(A) or its gradient."""

from __future__ import annotations

from torch import Tensor, nn

from p4torch._options import check_tensor
from p4torch.parametrize.lookup import perturbation_of


class FactoredLinear(nn.Linear):
    """An `nn.Linear` whose weight is perturbed. `perturb` swaps a layer's class for this one, `finalize` back."""

    def forward(self, input: Tensor) -> Tensor:
        check_tensor("input", input)
        perturbation, base = perturbation_of(self, "weight")
        return perturbation.affine(base, input, self.bias)
