"""Matrices that intertwine two representations, given by what generates the group: equivariant layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from p4torch.core.identity import fingerprint
from p4torch.core.perturbation import Perturbation
from p4torch.core.step_size import STEP, check_scale, scale_repr, size_of
from p4torch.errors import ArgumentError
from p4torch.properties._math import biases
from p4torch.properties._math.groups import is_pair
from p4torch.properties._math.intertwiners import Intertwiners
from p4torch.properties._math.shapes import check_real_matrix
from p4torch.properties.linear_subspace import LinearSubspace
from p4torch.representations import Representation
from p4torch.representations.representation import check_same_group

#: One for outputs and inputs, or two.
Pair = Representation | tuple[Representation, Representation]


class Intertwining(LinearSubspace, kinds=("generators", "algebra", "representation")):
    """S = {A `(..., n, m)` : ρ_out(g) A = A ρ_in(g) for generators g, dρ_out(X) A = A dρ_in(X) for X in the algebra}.

        R_B(A) = A + g Σ a_i E_i,   a `(..., d)`,   E_1, ..., E_d an orthonormal basis of S

    It moves in d directions, all of S. With g, a step moves A by the same relative amount in every S.
    The basis is made once: from orbits of pairs of features for permutations, O(n m); else for each pair of different
    parts of the representations (features that no matrix mixes with others), from an SVD in float64, O((n m)³) of their
    sizes. A step forms the matrix beside the three products of a plain layer. Options as in `LinearSubspace`.
    """

    gain: Tensor

    _unsupported = ("rank", "directions", "train_directions")

    def __init__(
        self,
        base: Tensor,
        kind: None = None,
        *,
        generators: Any = None,
        algebra: Any = None,
        representation: Pair | None = None,
        scale: float | None = None,
    ) -> None:
        check_real_matrix(base)
        super().__init__(base)
        if representation is None:
            representation = _representations(generators, algebra)
        left, right = self._checked(representation)
        eps = max(left.eps, right.eps)
        self.intertwiners = Intertwiners(left.matrices, right.matrices, eps).to(base.device)
        if self.intertwiners.dimension == 0:
            raise ArgumentError.of("representation", "one that some matrix but 0 commutes with", "one without it")
        self.outputs, self.scale = left, check_scale(scale)
        self._fingerprint = fingerprint(left.matrices, right.matrices)
        self.a = nn.Parameter(base.new_zeros(*base.shape[:-2], self.intertwiners.dimension))
        self.register_buffer("gain", base.new_ones(*base.shape[:-2], 1))
        self.after_admission(base)

    def _checked(self, representation: Any) -> tuple[Representation, Representation]:
        """Those of outputs and inputs."""
        pair = representation if isinstance(representation, (tuple, list)) else (representation, representation)
        if len(pair) != 2 or not all(isinstance(part, Representation) for part in pair):
            raise ArgumentError.of("representation", "a Representation, or two of them", type(representation).__name__)
        check_same_group(pair)
        sizes, shape = (pair[0].size, pair[1].size), tuple(self.base_shape[-2:])
        if sizes != shape:
            raise ArgumentError.of("representation", f"of {shape[0]} outputs and {shape[1]} inputs", f"one of {sizes}")
        return pair[0], pair[1]

    # --- R_B ----------------------------------------------------------------------------------------------------------

    def forward(self, base: Tensor) -> Tensor:
        return base + self.intertwiners.forward(self.gain.to(self.a.dtype) * self.a)

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.a.zero_()

    @torch.no_grad()
    def after_admission(self, base: Tensor) -> None:
        if self.scale is not None:
            self.gain.fill_(self.scale)
            return
        n, m = base.shape[-2:]
        step = STEP / (self.intertwiners.dimension**0.5 * (n**-0.5 + m**-0.5))
        self.gain.copy_((step * size_of(base))[..., None])

    # --- the set ------------------------------------------------------------------------------------------------------

    def project(self, tensor: Tensor) -> Tensor:
        """The nearest matrix of S."""
        return self.intertwiners.project(tensor).to(tensor.dtype)

    # --- a bias -------------------------------------------------------------------------------------------------------

    def companions(self, module: nn.Module, tensor_name: str) -> dict[str, Callable[[Tensor], Perturbation]]:
        """A bias, among the invariant vectors."""
        invariant = partial(LinearSubspace, representation=(self.outputs, self.outputs.trivial()))
        return biases.companions(module, tensor_name, self.outputs.size, invariant)

    def warning_for(self, module: nn.Module, tensor_name: str) -> str | None:
        factors = self.outputs.trivial().matrices[:, 0, 0]
        return biases.warning_for(module, tensor_name, self.outputs.matrices, factors, Intertwining)

    def identity(self) -> str:
        return f"Intertwining(representation {self._fingerprint}{scale_repr(self.scale)})"

    def extra_repr(self) -> str:
        return f"{self.intertwiners.dimension} of {self.base_shape[-2:].numel()} directions{scale_repr(self.scale)}"


def _representations(generators: Any, algebra: Any) -> Pair:
    """One or two, of matrices for both, or of pairs of them for outputs and inputs."""
    given = [value for value in (generators, algebra) if value is not None]
    if not any(is_pair(value) for value in given):
        return Representation(generators, algebra)
    if not all(is_pair(value) for value in given):
        raise ArgumentError.of("generators, algebra", "both pairs, for outputs and inputs, or none", "one pair")
    first, second = zip(*(value if value is not None else (None, None) for value in (generators, algebra)), strict=True)
    return Representation(*first), Representation(*second)
