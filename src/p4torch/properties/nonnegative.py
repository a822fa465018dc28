"""Tensors without negative entries: monotone and input-convex layers, rates, counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch._options import check_number
from p4torch.core.perturbation import Perturbation
from p4torch.core.transaction import Proposal
from p4torch.errors import ArgumentError
from p4torch.properties._math.zeros import rounded_positive, warn_of_clipped_entries, warn_of_untrained_zeros


class Nonnegative(Perturbation):
    """S = {A : A >= 0}, entry by entry; any shape, B of the same.

        R_B(A) = A ⊙ exp(B),   B₀: B = 0

    Near B₀, dA = A ⊙ dB: every positive entry moves, by shares of itself. An entry that is 0 stays 0 for ever, by no
    gradient: see `floor`. Positive entries stay positive, through merges too: one that would underflow becomes the
    smallest normal number of the dtype; a merge that would overflow is skipped.

    Nothing is drawn at random, tracked or corrected; merges are exact, and an optimizer sees nothing of them: B means
    the same before and after, a shift of log A. A step costs two passes over the entries beside those of a plain layer,
    a merge one in float64.

    Args:
        base: `(...)`. Negative entries are projected: they become `floor`.
        floor: what entries below it become when a tensor is admitted (not later: training may lead below it). 0 says
            that the zeros of a base are a pattern to keep; by default they are kept, too, with a `PropertyWarning`.

    Raises:
        ArgumentError: for a base that is not real and finite, or has negative entries and no positive one: nothing
            would be left to train; for `floor` < 0.

    Source: Kivinen and Warmuth (1997), exponentiated gradient, for steps that multiply.
    """

    def __init__(self, base: Tensor, floor: float | None = None) -> None:
        self.event_dim = min(2, base.dim()) if isinstance(base, Tensor) else 2
        super().__init__(base)
        if base.is_complex():
            raise ArgumentError.of("base", "real", base.dtype)
        self.floor_given = floor is not None
        floor = check_number("floor", 0.0 if floor is None else floor, 0.0)
        self.floor = floor
        self.b = nn.Parameter(torch.zeros_like(base, memory_format=torch.contiguous_format))

    def forward(self, base: Tensor) -> Tensor:
        return base * self.b.exp()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.b.zero_()

    def defect(self, tensor: Tensor) -> Tensor:
        """The distance to S, the norm of the negative entries, relative to the norm of all."""
        events = tensor.flatten(self.skips.dim()) if tensor.dim() > self.skips.dim() else tensor.unsqueeze(-1)
        entries = linalg.scaled_by_largest(events, (-1,))
        size = torch.linalg.vector_norm(entries, dim=-1).clamp_min(torch.finfo(entries.dtype).tiny)
        return torch.linalg.vector_norm(entries.clamp_max(0), dim=-1) / size

    def project(self, tensor: Tensor) -> Tensor:
        """Negative entries become 0, or `floor`. Raises ArgumentError where that leaves nothing."""
        negative = tensor < 0
        if self.floor == 0:
            events = tensor.flatten(self.skips.dim())
            lost = (events <= 0).all(-1) & (events < 0).any(-1)
            if bool(lost.any()):
                got = f"{int(lost.sum())} of {lost.numel()} without a positive entry, of which only zeros would be left"
                raise ArgumentError.of("tensor", "positive in some entries, if `floor` is 0", got)
            warn_of_clipped_entries(negative, self.tensor_name)
        return torch.where(negative, self.floor, tensor)

    @torch.no_grad()
    def right_inverse(self, tensor: Tensor) -> Tensor:
        admitted: Tensor = super().right_inverse(tensor).clamp_(min=self.floor)  # no -1e-9 either
        if not self.floor_given:
            warn_of_untrained_zeros(tensor, self.tensor_name, rows=False)
        return admitted

    def propose(self, base: Tensor) -> Proposal:
        return Proposal(rounded_positive(base.double() * self.b.double().exp(), base.dtype))

    def identity(self) -> str:
        return "Nonnegative()"

    def extra_repr(self) -> str:
        return f"floor={self.floor:g}"
