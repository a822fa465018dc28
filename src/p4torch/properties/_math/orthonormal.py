"""What real and complex matrices with orthonormal columns or rows have in common: the set, admission and merges."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.low_rank import Side
from p4torch.core.shaped import Shaped
from p4torch.core.transaction import Proposal
from p4torch.properties._math.drift import block_reorthonormalized, reorthonormalized_if_drifted
from p4torch.properties._math.shapes import check_square


class Orthonormal(Shaped):
    """S = {A : AᴴA = I}, for wide A {A Aᴴ = I}. A shape says which group elements lead from S to S."""

    def factors_act(self, base: Tensor) -> Side:
        """On the long side."""
        return "right" if base.shape[-2] < base.shape[-1] else "left"

    def base_inverse(self, base: Tensor) -> Tensor:
        """Aᴴ."""
        check_square(base, "an inverse")
        return base.mH

    def inverse(self, base: Tensor) -> Tensor:
        """R_B(A)ᴴ."""
        check_square(base, "an inverse")
        with linalg.full_precision(base.device):
            matrix = self.forward(base)
            return matrix.mH.resolve_conj()

    def logabsdet(self, base: Tensor) -> Tensor:
        """0, whatever B is; real."""
        check_square(base, "a determinant")
        return torch.zeros_like(self.skips, dtype=base.real.dtype)

    def defect(self, tensor: Tensor) -> Tensor:
        """‖AᴴA - I‖ / √p in the Frobenius norm (tall; A Aᴴ for wide ones), O(np²): the mean defect of a column."""
        vectors = linalg.short_rows(linalg.at_least_single(tensor.detach()))
        return torch.linalg.matrix_norm(linalg.gram_error(vectors)) / vectors.shape[-2] ** 0.5

    def project(self, tensor: Tensor) -> Tensor:
        """The polar factor: the nearest matrix of S."""
        return linalg.orthonormalized(tensor).to(tensor.dtype)

    def propose(self, base: Tensor) -> Proposal:
        turn = self.merge_index
        return Proposal(block_reorthonormalized(reorthonormalized_if_drifted(self._candidate(base), turn), turn))

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        """All of A, where the probe finds more than rounding."""
        base.copy_(reorthonormalized_if_drifted(base, self.merge_index))
