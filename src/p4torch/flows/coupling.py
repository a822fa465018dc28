"""Affine coupling: the RealNVP layer of the paper's baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from p4torch.flows._context import check_context_features, shown, spread
from p4torch.flows._fused.run import Kind, Step
from p4torch.flows.bijection import Coupling, check_coupled, check_event, check_hidden


class AffineCoupling(Coupling):
    """[a, b] -> [a, b · e^s + t] with s = tanh(f(a)) · exp(log α) and t = g(a); a has ⌈n/2⌉ features.

    f and g are separate MLPs (evaluated side by side) and log α is one scalar. At 60 features and hidden (60, 60)
    there are 2 · 7,350 + 1 = 14,701 parameters; 50 such layers have the 735,050 of Krämer, Köhler and Noé (2020),
    section 4.2. The last layer of each MLP starts at zero, so the coupling starts as the identity.

    With a context c, f and g see [a, c]. A single feature then moves as c says.

    Args:
        features: n >= 2, or 1 with a context.
        hidden: widths of the hidden layers of both MLPs.
        activation: of the MLPs.
        context: how many features the context has, 0 for none.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (60, 60),
        activation: Callable[[], nn.Module] = nn.SiLU,
        *,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.context_features = check_context_features(context)
        self.features = check_coupled(features, least=1 if context else 2)
        hidden = check_hidden(hidden)
        self.kept = features - features // 2 if features > 1 else 0
        changed = features - self.kept
        self.register_buffer("place", torch.arange(self.kept, features), persistent=False)
        self.nets = _TwinMLP([self.kept + context, *hidden, changed], activation)
        self.log_alpha = nn.Parameter(torch.zeros(()))

    def moves(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b, log_scale, shift = self._split(x, context)
        return torch.cat([a, b * log_scale.exp() + shift], dim=-1), log_scale

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b, log_scale, shift = self._split(z, context, "z")
        return torch.cat([a, (b - shift) * (-log_scale).exp()], dim=-1), -log_scale.sum(-1)

    def step(self, inverse: bool = False) -> Step | None:
        nets = self._modules["nets"]  # by attribute it takes ten times as long
        if type(self) is not AffineCoupling or type(nets) is not _TwinMLP or not nets.plain_silu or self.features < 2:
            return None
        kind: Kind = "coupling_inverse" if inverse else "coupling"
        return Step(kind, self.features, (cast(Tensor, self._parameters["log_alpha"]), *nets.layers()))

    def _split(self, x: Tensor, context: Tensor | None, name: str = "x") -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_event(x, self.features, self.log_alpha.dtype, name=name)
        seen = []
        if context is not None:
            x, context = spread(x, context)
            seen = [context]
        a, b = x.split([self.kept, self.features - self.kept], dim=-1)
        scale, shift = self.nets(torch.cat([a, *seen], dim=-1))
        return a, b, torch.tanh(scale) * self.log_alpha.exp(), shift

    def extra_repr(self) -> str:
        return f"features={self.features}{shown(self.context_features)}"


class _TwinMLP(nn.Module):
    """Two MLPs of the same shape on the same input, `(..., m)` -> two of `(..., m')`, as one batched product a layer.

    Weights are `(2, out, in)` and start as in `nn.Linear`, but for the last layer's, which are zero.
    """

    def __init__(self, widths: Sequence[int], activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        shapes = list(zip(widths[1:], widths, strict=False))
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(2, *shape)) for shape in shapes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(2, 1, outputs)) for outputs, _ in shapes)
        self.activations = nn.ModuleList(activation() for _ in shapes[:-1])
        self.plain_silu = all(type(module) is nn.SiLU and not module.inplace for module in self.activations)
        for weight, bias in list(zip(self.weights, self.biases, strict=True))[:-1]:
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def layers(self) -> list[Tensor]:
        """Weights and biases in turn."""
        weights, biases = (cast(nn.Module, self._modules[name])._parameters for name in ("weights", "biases"))
        return [value for pair in zip(weights.values(), biases.values(), strict=True) for value in pair]  # type: ignore[misc]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.reshape(1, -1, x.shape[-1]).expand(2, -1, -1)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            y = torch.baddbmm(bias, y, weight.mT)
            if index < len(self.activations):
                y = self.activations[index](y)
        first, second = y.reshape(2, *x.shape[:-1], y.shape[-1]).unbind(0)
        return first, second
