"""Low-rank perturbations: what all of them share. A property says which factors it allows, and where they act."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch._options import check_choice, check_integer
from p4torch.core.directions import Apply, GradientSketch, LinearOperator, matrix_operator, outer_operator
from p4torch.core.perturbation import Perturbation
from p4torch.core.step_size import check_scale, low_rank_gain, scale_repr, size_of
from p4torch.core.transaction import MergeReport
from p4torch.errors import ArgumentError
from p4torch.linalg import fused_linear

Side = Literal["add", "left", "right"]
Directions = Literal["random", "gradient"]


class LowRankOptions(TypedDict, total=False):
    """The options that all low-rank perturbations have, see `LowRank`."""

    scale: float | None
    directions: Directions
    train_directions: bool


class LowRank(Perturbation):
    """R_B(A) from thin factors P, Q `(..., n, r)`, which are functions of B = (U, V) alone:

        add:    A + P Qᵀ
        left:   (I + P Qᵀ) A
        right:  A (I + P Qᵀ)

    B₀ is U = 0 and V ~ N(0, 1), `(..., n, k)`; the factors are functions of g U and V. The factored path forms neither
    R_B(A) nor its gradient; small matrices, for which that is cheaper, do without it.

    A property sets `side` and may define `factors`, besides `defect` and `project`. A base may be rectangular.

    Args:
        base: `(..., n, m)`.
        rank: k, from 1 to the length of a column of V, since more of them would depend on each other: m; on the left n.
        scale: g, or None for the one of `p4torch.core.step_size`, with which a rate moves A by the same relative
            amount at every n and rank. 1 is the paper's: a step η of Adam then moves A by about η √k in each entry.
        directions: "random", or "gradient": from the gradient of the step before the merge, V = √n · S, see
            `p4torch.core.directions`. A `MergeScheduler` sees to it; without one, and for the first directions, it is
            random. Random, too, where `torch.compile` hides the gradient.
        train_directions: whether V trains, or only U (then V does not pass its gradient, and costs less).
        side: where the factors act.
    """

    directions: ClassVar[tuple[str, ...]] = ("v",)
    gain: Tensor
    #: Whether the factors move A by shares of itself, although they are added.
    relative: ClassVar[bool] = False
    #: Whether only the skew part of the gradient moves R_B(A).
    skew: ClassVar[bool] = False

    def __init__(
        self,
        base: Tensor,
        rank: int,
        *,
        side: Side = "add",
        scale: float | None = None,
        directions: Directions = "random",
        train_directions: bool = True,
    ) -> None:
        super().__init__(base)
        if str(directions) == "informed":
            raise ArgumentError.of("directions", "random or gradient, its new name", repr(directions))
        check_choice("directions", directions, ("random", "gradient"), "random or gradient")
        batch, (outputs, inputs) = base.shape[:-2], base.shape[-2:]
        rank, most = check_integer("rank", rank, 1), outputs if side == "left" else inputs
        if rank > most:
            raise ArgumentError.of("rank", f"at most {most}, the number of coordinates that it acts on", rank)
        self.rank, self.scale, self.side = rank, check_scale(scale), side
        self.gradient_directions = directions == "gradient"
        self.sketch: GradientSketch | None = None
        self.u = nn.Parameter(base.new_zeros(*batch, inputs if side == "right" else outputs, rank))
        self.v = nn.Parameter(base.new_zeros(*batch, outputs if side == "left" else inputs, rank))
        self.v.requires_grad_(bool(train_directions))
        self.register_buffer("gain", base.real.new_ones(*batch, 1, 1))
        self._fit_gain(base)
        self.reset(torch.default_generator)

    @property
    def scaled_u(self) -> Tensor:
        """g U."""
        return self.u if self.scale == 1 else self.u * self.gain.to(self.u.dtype)

    def after_admission(self, base: Tensor) -> None:
        self._fit_gain(base)

    @torch.no_grad()
    def _fit_gain(self, base: Tensor) -> None:
        if self.scale is None:
            self.gain.copy_(self.natural_gain(base)[..., None, None])
        else:
            self.gain.fill_(self.scale)

    # --- what a property defines ------------------------------------------------------------------------------------

    def natural_gain(self, base: Tensor) -> Tensor:
        """The g that is used if `scale` is None, `(...)`."""
        gain = low_rank_gain(self.u.shape[-2], self.v.shape[-2], self.rank)
        absolute = self.side == "add" and not self.relative
        return gain * (size_of(base) if absolute else torch.ones_like(self.skips))

    def factors(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """P and Q, pure functions of U and V in any dtype. U and V themselves by default."""
        return u, v

    def factors_at(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """P and Q in the dtype of the base, on which they may depend, too. Whoever makes use of that also overrides
        `additive_factors` or `propose`, which make merges."""
        return self.factors(self.scaled_u, self.v)

    # --- R_B --------------------------------------------------------------------------------------------------------

    def forward(self, base: Tensor) -> Tensor:
        matrix = self.apply_factors(base, *self.factors_at(base))
        if self.sketch is not None:
            self.sketch.record(matrix, lambda g: self.pull_back(base, matrix_operator(g)))
        return matrix

    @torch.no_grad()
    def additive_factors(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """U', V' in float64 with R_B(A) = A + U' V'ᵀ, for merges."""
        p, q = self.factors(linalg.in_double(self.scaled_u), linalg.in_double(self.v))
        if self.side == "left":
            q = linalg.in_double(base).mT @ q
        elif self.side == "right":
            p = linalg.in_double(base) @ p
        return p, q

    def apply_factors(self, base: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """R_B(A) from its factors."""
        if self.side == "left":
            q = linalg.tall_matmul(base.mT, q)
        elif self.side == "right":
            p = linalg.tall_matmul(base, p)
        return linalg.add_low_rank(base, p, q)

    def matmul(self, base: Tensor, x: Tensor) -> Tensor:
        return self.affine(base, x, None)

    def affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        y = self._affine(base, x, bias)
        if self.sketch is not None:
            self.sketch.record(
                y, lambda g: self.pull_back(base, outer_operator(g, x.detach().to(g.dtype), base.dim() > 2))
            )
        return y

    def _affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        p, q = self.factors_at(base)
        if self.side == "add":
            return fused_linear.affine(x, base, p, q, bias)
        if fused_linear.dense_is_cheaper(x, base, q.shape[-1]):
            return linalg.rows_times(x, self.apply_factors(base, p, q), bias)
        if self.side == "right":
            return linalg.rows_times(fused_linear.identity_plus_low_rank(x, p, q), base, bias)
        y = fused_linear.identity_plus_low_rank(linalg.rows_times(x, base), p, q)
        return y if bias is None else y + bias.to(y.dtype)

    # --- B ----------------------------------------------------------------------------------------------------------

    def pull_back(self, base: Tensor, gradient: LinearOperator) -> LinearOperator:
        """From the gradient G of the whole matrix to that of what the factors make: G, G Aᵀ on the left, Aᵀ G on the
        right."""
        if self.side == "left":
            gradient = gradient @ matrix_operator(base.detach().mT)
        elif self.side == "right":
            gradient = matrix_operator(base.detach().mT) @ gradient
        return gradient.skew() if self.skew else gradient

    def start_sketch(self, generator: torch.Generator, all_reduce_mean: Apply | None = None) -> None:
        """Record gradients from here to the next merge, if directions are to follow them. `generator` draws Ω."""
        if self.gradient_directions:
            self.sketch = GradientSketch(self._normal(generator).to(self.v), self.u.detach(), all_reduce_mean)

    def discard_sketch(self) -> None:
        self.sketch = None

    def clip_factor(self, size: Tensor, most: float) -> None:
        """U <- U · min(1, most / size), in place, for `after_step`; `size` `(...)` is proportional to U."""
        self.u.mul_((most / size).clamp(max=1.0)[..., None, None].to(self.u.dtype))

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.u.zero_()
        if generator is not None:
            drawn = self._normal(generator).to(self.v)
            if self.sketch is not None:
                seen = self.sketch.directions() * drawn.shape[-2] ** 0.5
                usable = seen.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
                first = slice(seen.shape[-1])  # all, unless k is above the rows of A: the rest is random then
                drawn[..., first] = torch.where(usable, seen, drawn[..., first])
            self.v.copy_(drawn)

    def _normal(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self.v.shape, generator=generator, dtype=torch.float64)

    def after_commit(self, base: Tensor, report: MergeReport) -> None:
        self.sketch = None

    def _candidate(self, base: Tensor) -> Tensor:
        """R_B(A) for a merge, in the base's own dtype: the factors are small numbers beside A."""
        exact = linalg.at_least_single(base)
        p, q = (
            factor.to(exact.dtype) for factor in self.factors(linalg.in_double(self.scaled_u), linalg.in_double(self.v))
        )
        return self.apply_factors(exact, p, q).to(base.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """B without g: from before it was kept, when the length of V stood for it."""
        if any(prefix + name in state_dict for name, _ in self.own_parameters()):
            state_dict.setdefault(prefix + "gain", torch.ones_like(self.gain))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def transport(self, previous: dict[str, Tensor]) -> dict[str, Tensor]:
        """For the optimizer-state option "transport": the `(..., k, k)` matrices that map the momentum of the other
        parameters, by name, from the `previous` directions onto the new ones. ∂L/∂U = G V near B₀, so its history moves
        onto V' by the least-squares V⁺ V'."""
        return {"u": torch.linalg.pinv(linalg.in_double(previous["v"])) @ linalg.in_double(self.v)}

    def extra_repr(self) -> str:
        return f"rank={self.rank}{scale_repr(self.scale)}"
