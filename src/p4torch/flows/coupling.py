"""Affine coupling: the RealNVP layer of the paper's baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from p4torch.errors import ArgumentError
from p4torch.flows.bijection import Bijection, check_event, check_features


class AffineCoupling(Bijection):
    """[a, b] -> [a, b · e^s + t] with s = tanh(f(a)) · exp(log α) and t = g(a); a has ⌈n/2⌉ features.

    f and g are separate MLPs and log α one scalar. At 60 features and hidden (60, 60) there are 2 · 7,350 + 1 = 14,701
    parameters; 50 such layers have the 735,050 of Krämer, Köhler and Noé (2020), section 4.2. The last layer of each
    MLP starts at zero, so the coupling starts as the identity.

    Args:
        features: n >= 2.
        hidden: widths of the hidden layers of both MLPs.
        activation: of the MLPs.
    """

    def __init__(
        self, features: int, hidden: Sequence[int] = (60, 60), activation: Callable[[], nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        self.features = check_features(features, least=2)
        if any(not isinstance(width, int) or width < 1 for width in hidden):
            raise ArgumentError.of("hidden", "a sequence of integers >= 1", hidden)
        changed = features // 2
        self.kept = features - changed
        self.scale_net = _mlp([self.kept, *hidden, changed], activation)
        self.shift_net = _mlp([self.kept, *hidden, changed], activation)
        self.log_alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b, log_scale, shift = self._split(x)
        return torch.cat([a, b * log_scale.exp() + shift], dim=-1), log_scale.sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        a, b, log_scale, shift = self._split(z)
        return torch.cat([a, (b - shift) * (-log_scale).exp()], dim=-1), -log_scale.sum(-1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_event(x, self.features)
        a, b = x.split([self.kept, self.features - self.kept], dim=-1)
        return a, b, torch.tanh(self.scale_net(a)) * self.log_alpha.exp(), self.shift_net(a)

    def extra_repr(self) -> str:
        return f"features={self.features}"


def _mlp(widths: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers with activations between them, the last one zero."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), activation()]
    last = layers[-2]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers[:-1])
