"""The linear layers that P4Inv is compared with: z = W x + b, W `(n, n)`, all from the same first W."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4torch.flows import Bijection
from p4torch.flows.bijection import check_event


class DenseLinear(Bijection):
    """W itself trains; log|det W| and its gradient W⁻ᵀ cost O(n³) a step (`torch.linalg.slogdet`)."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.features = start.shape[-1]
        self.weight = nn.Parameter(start.clone())
        self.bias = nn.Parameter(start.new_zeros(self.features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.features)
        return F.linear(x, self.weight, self.bias), self.logabsdet()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_event(z, self.features, name="z")
        return torch.linalg.solve(self.weight, (z - self.bias).unsqueeze(-1)).squeeze(-1), -self.logabsdet()

    def logabsdet(self) -> Tensor:
        """log|det W|, `()`."""
        return torch.linalg.slogdet(self.weight).logabsdet


class FixedLinear(DenseLinear):
    """W stays as it is and b trains: what the rest of the flow does alone."""

    def __init__(self, start: Tensor) -> None:
        super().__init__(start)
        self.weight.requires_grad_(False)
        self.register_buffer("constant", super().logabsdet())

    def logabsdet(self) -> Tensor:
        """log|det W|, computed once."""
        return self.constant  # type: ignore[return-value]


class RelativeLinear(DenseLinear):
    """W trains along the relative gradient, which needs neither W⁻¹ nor log|det W|.

    The loss is ℓ - log|det W|, its gradient G - W⁻ᵀ with G = ∂ℓ/∂W. Times WᵀW on the right that is

        (G Wᵀ - I) W.

    While training, `forward` leaves log|det W| out of the loss (it tells 0), and a hook turns G into the above.
    In evaluation it is as the dense layer.

    Source: Gresele et al., Relative gradient optimization of the Jacobian term in unsupervised deep learning, 2020.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__(start)
        self.weight.register_hook(self._relative)

    @torch.no_grad()
    def _relative(self, gradient: Tensor) -> Tensor:
        if not self.training:
            return gradient @ self.weight.mT @ self.weight
        return torch.addmm(self.weight, gradient @ self.weight.mT, self.weight, beta=-1)

    def logabsdet(self) -> Tensor:
        """log|det W| in evaluation, 0 in training."""
        return self.weight.new_zeros(()) if self.training else super().logabsdet()


class LULinear(Bijection):
    """W = P L (U + diag(σ exp d)): P a fixed permutation, L unit lower, U strictly upper triangular, σ = ±1 fixed.

    log|det W| = Σ d. L, d and U share one trained tensor `(n, n)`. From the LU factors of the start, as in Glow
    (Kingma and Dhariwal, 2018).
    """

    permutation: Tensor
    sign: Tensor
    eye: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.features = start.shape[-1]
        permutation, lower, upper = torch.linalg.lu(start.double())
        diagonal = upper.diagonal()
        packed = lower.tril(-1) + upper.triu(1) + diagonal.abs().log().diag()
        self.packed = nn.Parameter(packed.to(start.dtype))
        self.bias = nn.Parameter(start.new_zeros(self.features))
        self.register_buffer("permutation", permutation.argmax(-1))  # row i of P L is row permutation[i] of L
        self.register_buffer("sign", diagonal.sign().to(start.dtype))
        self.register_buffer("eye", torch.eye(self.features, dtype=start.dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U + diag(σ exp d)."""
        diagonal = (self.sign * self.packed.diagonal().exp()).diag()
        return self.packed.tril(-1) + self.eye, self.packed.triu(1) + diagonal

    def logabsdet(self) -> Tensor:
        """Σ d, `()`."""
        return self.packed.diagonal().sum()

    def matrix(self) -> Tensor:
        """W."""
        lower, upper = self.factors()
        return (lower @ upper)[self.permutation]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.features)
        return F.linear(x, self.matrix(), self.bias), self.logabsdet()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_event(z, self.features, name="z")
        lower, upper = self.factors()
        y = (z - self.bias)[..., self.permutation.argsort()].unsqueeze(-1)
        y = torch.linalg.solve_triangular(lower, y, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, y, upper=True).squeeze(-1), -self.logabsdet()
