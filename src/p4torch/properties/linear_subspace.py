"""Linear subspaces of matrices: what all kinds share, and the front door that picks one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.core.perturbation import Perturbation
from p4torch.core.transaction import Proposal
from p4torch.errors import ArgumentError

#: Options that say which subspace it is, in the place of a kind.
OPTIONS = ("mask", "group", "generators", "algebra", "representation")


class LinearSubspace(Perturbation):
    """S = a linear subspace of the matrices `(..., n, m)`, given by a kind, a mask, a group or a representation:

        LinearSubspace(base, "symmetric")       A = Aᵀ                            U Vᵀ + V Uᵀ
        LinearSubspace(base, "skew")            A = -Aᵀ                           U Vᵀ - V Uᵀ
        LinearSubspace(base, "circulant")       A_ij = a_(i-j mod n)              a: n numbers
        LinearSubspace(base, "toeplitz")        A_ij = a_(i-j)                    a: n + m - 1 numbers
        LinearSubspace(base, "lower" | "upper") 0 above | below the diagonal      U Vᵀ inside
        LinearSubspace(base, mask=M)            0 where M is false                M ∘ (U Vᵀ)
        LinearSubspace(base, group=ρ)           ρ_out(g) A = A ρ_in(g) for all g  mean of ρ_out(g) U Vᵀ ρ_in(g)⁻¹
        LinearSubspace(base, generators=ρ)      the same, of what generates it    Σ a_i E_i, E a basis of S
        LinearSubspace(base, algebra=X)         X_out A = A X_in for all X        Σ a_i E_i
        LinearSubspace(base, representation=ρ)  both, of a `Representation`       Σ a_i E_i

    R_B(A) = A + the last column, which B = (U, V), of k columns, or the coordinates a make. B₀: U = 0 and V ~ N(0, 1),
    or a = 0. A stays in S whatever B is; rounding is projected away at every merge, which is exact. Nothing is tracked.
    The classes in `p4torch.properties._subspaces` say what a step costs, and how many directions there are at B₀;
    circulant and triangular matrices have inverse and determinant in closed form, the others by LAPACK.

    Args:
        base: `(..., n, m)`, real. One that is not in S is projected: to the nearest matrix of S, for a group to the
            mean of ρ_out(g) A ρ_in(g)⁻¹. The warning states the distance, relative to the norm.
        kind: one of those above, if nothing of what follows is given.
        rank: k, 1 <= k <= m, for kinds with U and V. 1 by default; for a group as many as it takes to reach n
            directions.
        mask: a boolean tensor `(n, m)`.
        group: all matrices of a finite group, `(g, n, n)`, that S commutes with; or two representations of it, of
            outputs and inputs, `((g, n, n), (g, m, m))`, in the same order.
        generators: matrices `(g, n, n)` that generate a group, finite or not, or a pair for outputs and inputs.
        algebra: matrices `(k, n, n)` that span a Lie algebra, X, or a pair: S commutes with all exp(t X). May be given
            beside `generators`.
        representation: a `p4torch.representations.Representation`, or a pair of them for outputs and inputs.
        options: `scale`, `directions`, `train_directions` of `p4torch.core.low_rank.LowRank`, for kinds with U and V;
            `scale` for those with a basis.

    A layer is equivariant without a bias, or with one that is invariant, ρ_out(g) b = b. Of a weight under a group or a
    representation, `p4torch.perturb` projects the bias onto those and perturbs it, too.

    Raises:
        ArgumentError: for a base that is not a real, finite matrix of a fitting shape; for options that say nothing or
            two things; for a group whose matrices are no group, saying why; where S holds nothing but 0.

    Source: Serre (1977), Linear Representations of Finite Groups, section 2.2, for the mean over a group (Reynolds);
    Finzi, Welling and Wilson (2021), for bases from generators; Davis (1979), Circulant Matrices, section 3.2.
    """

    _kinds: ClassVar[dict[str, type[LinearSubspace]]] = {}
    #: Options that a class has no use for.
    _unsupported: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, kinds: tuple[str, ...] = (), **options: Any) -> None:
        super().__init_subclass__(**options)
        LinearSubspace._kinds.update(dict.fromkeys(kinds, cls))

    def __new__(cls, *arguments: Any, **options: Any) -> LinearSubspace:
        if cls is not LinearSubspace:  # a kind, or a copy being made
            return super().__new__(cls)
        return super().__new__(_class_for(*arguments, **options))

    # --- the set ------------------------------------------------------------------------------------------------------

    def defect(self, tensor: Tensor) -> Tensor:
        """‖A - ΠA‖ / ‖A‖ in the Frobenius norm, Π the projection onto S."""
        exact = linalg.scaled_by_largest(tensor)
        norm = torch.linalg.matrix_norm(exact).clamp_min(torch.finfo(exact.dtype).tiny)
        return torch.linalg.matrix_norm(exact - self.project(exact)) / norm

    def right_inverse(self, tensor: Tensor) -> Tensor:
        return self.project(super().right_inverse(tensor))  # what is nearly in S gets the precision of its dtype

    def propose(self, base: Tensor) -> Proposal:
        proposal = super().propose(base)
        assert proposal.base is not None
        return replace(proposal, base=self.project(proposal.base))


def _class_for(base: Tensor, kind: str | None = None, *arguments: Any, **options: Any) -> type[LinearSubspace]:
    """The class that the options ask for."""
    known = LinearSubspace._kinds
    named = {"kind": kind} | {name: options.get(name) for name in OPTIONS}
    given = [name for name, value in named.items() if value is not None]
    if len(given) != 1 and given != ["generators", "algebra"]:
        expected = "given, exactly one of them, or generators and algebra"
        raise ArgumentError.of(", ".join(named), expected, " and ".join(given) or "none")
    if kind is not None and (not isinstance(kind, str) or kind not in known or kind in OPTIONS):
        names = ", ".join(name for name in known if name not in OPTIONS)
        raise ArgumentError.of("kind", f"one of {names}", repr(kind))
    name = given[0] if kind is None else kind
    chosen = known[name]
    useless = [option for option in chosen._unsupported if option in options]
    if useless or (arguments and "rank" in chosen._unsupported):
        raise ArgumentError.of(useless[0] if useless else "rank", f"left out for {name}, whose coordinates train", "it")
    return chosen
