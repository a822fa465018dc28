"""What is known of a spectral norm: the bound to keep, and a certified bound of the base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from p4torch.properties._math.norms import clip_norm, norm_bound, rounding_share

#: Singular values are clipped to this share below the bound, so that the result is certified in a few squarings.
CLIP_MARGIN = 1e-3


class Certificate(nn.Module):
    """The bound c and an upper bound s of ‖A‖₂, `(...)` each, in float64 whatever `.to()` or `.half()` do to the model.

    A change to a shorter dtype rounds the base: s is infinite then, and computed again at the next merge.
    """

    bound: Tensor
    norm: Tensor
    like: Tensor

    def __init__(self, base: Tensor, bound: Tensor) -> None:
        super().__init__()
        self.register_buffer("bound", bound.clone())
        self.register_buffer("norm", torch.full_like(bound, torch.inf))
        self.register_buffer("like", base.new_empty(0))  # of the base's dtype

    def bring_inside(
        self, exact: Tensor, dtype: torch.dtype, norm: Tensor, clip: bool, bound: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The matrix, rounded, where its norm is certified to be at most c; elsewhere it is clipped, if `clip`, and
        what is left above c divided away. Also the certified norm.

        Args:
            exact: `(..., n, m)` in float64.
            dtype: of the result.
            norm: what is known of its norm, `(...)`: an upper bound, if only infinity.
            clip: whether to cut singular values before all of them are scaled.
            bound: another c than the own one, `(...)`.
        """
        bound = self.bound if bound is None else bound
        tensor, norm = exact.to(dtype), norm.clone()
        rounding = 1 + rounding_share(tensor)
        for cut in (False, True) if clip else (False,):
            outside = (norm > bound) & exact.isfinite().flatten(-2).all(-1)
            if not bool(outside.any()):
                return tensor, norm
            limit = bound[outside]
            if cut:
                tensor[outside] = clip_norm(exact[outside], limit * (1 - CLIP_MARGIN) / rounding).to(dtype)
            norm[outside] = norm_bound(tensor[outside], limit)
        outside = norm > bound
        if bool(outside.any()):
            norm = torch.where(outside, norm_bound(tensor), norm)
            scaled = (tensor.double() * (bound / norm / rounding)[..., None, None]).to(dtype)
            tensor = torch.where(outside[..., None, None], scaled, tensor)
        return tensor, torch.minimum(norm, bound)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Certificate:
        before, dtype = {"bound": self.bound, "norm": self.norm}, self.like.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float64:
                setattr(self, name, moved.double() if value.is_meta else value.to(moved.device))
        if torch.promote_types(self.like.dtype, dtype) != self.like.dtype:
            self.norm = torch.full_like(self.norm, torch.inf)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint of a longer dtype is rounded, too."""
        given = state_dict.get(prefix + "like")
        super()._load_from_state_dict(state_dict, prefix, *args)
        if given is None or torch.promote_types(self.like.dtype, given.dtype) != self.like.dtype:
            self.norm.fill_(torch.inf)
