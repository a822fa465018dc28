"""What the bijections that hold a transform of another package have in common."""

from __future__ import annotations

from torch import nn

from p4torch.flows import Bijection
from p4torch.flows._context import check_context_features, shown
from p4torch.flows.bijection import check_features


class TransformBijection(Bijection):
    """A bijection of n features that asks a `transform`, with a context of so many features, or none."""

    def __init__(self, transform: nn.Module, features: int, context: int = 0) -> None:
        super().__init__()
        self.features, self.context_features = check_features(features), check_context_features(context)
        self.transform = transform

    def extra_repr(self) -> str:
        return f"features={self.features}{shown(self.context_features)}"
