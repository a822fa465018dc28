"""A flow: a bijection from data to a latent distribution that is easy to sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from p4torch._options import check_indices, check_tensor
from p4torch.errors import ArgumentError
from p4torch.flows._precision import in_full_precision
from p4torch.flows.bijection import Bijection, check_event, check_features
from p4torch.flows.latent import Distribution, base_log_prob, base_sample, check_base, latent_features
from p4torch.flows.structure import Structured


class StandardNormal(nn.Module):
    """N(0, I) in n dimensions: log p(z) = -(|z|² + n log 2π)/2.

    With a complex `dtype`, n complex numbers of mean square 1: log p(z) = -|z|² - n log π, the density of their 2n real
    parts.
    """

    zero: Tensor

    def __init__(self, features: int, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.features = check_features(features)
        self.register_buffer("zero", torch.zeros((), dtype=dtype), persistent=False)  # dtype and device of the samples

    @in_full_precision
    def log_prob(self, z: Tensor) -> Tensor:
        check_event(z, self.features, complex=self.zero.is_complex())
        if z.is_complex():
            return -(torch.view_as_real(z).square().sum((-2, -1)) + self.features * math.log(math.pi))
        return -(z.square().sum(-1) + self.features * math.log(2 * math.pi)) / 2

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        device = self.zero.device if generator is None else generator.device
        drawn = torch.randn(count, self.features, generator=generator, dtype=self.zero.dtype, device=device)
        return drawn.to(self.zero.device)

    def extra_repr(self) -> str:
        return f"features={self.features}"


class NormalAndUniform(Structured):
    """N(0, 1) for each feature on the line, uniform on [-π, π) for each on the circle; all independent.

    log p(z) = -(Σ_line z² + l log 2π)/2 - c log 2π, with l features on the line and c on the circle.

    Args:
        features: n.
        circular: which of them are angles.

    Raises:
        ArgumentError: for features that do not exist, or repeat.
    """

    structure = ("angle",)
    angle: Tensor

    def __init__(self, features: int, circular: Sequence[int]) -> None:
        super().__init__()
        self.features = check_features(features)
        circular = check_indices("circular", circular, self.features)
        angle = torch.zeros(features)
        angle[circular] = 1
        self.register_buffer("angle", angle)

    @in_full_precision
    def log_prob(self, z: Tensor) -> Tensor:
        check_event(z, self.features)
        logarithm = (self.features + self.angle.sum()) * (math.log(2 * math.pi) / 2)
        return -(z.square() * (1 - self.angle)).sum(-1) / 2 - logarithm

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        kind: dict[str, Any] = {
            "dtype": self.angle.dtype,
            "device": self.angle.device if generator is None else generator.device,
        }
        normal = torch.randn(count, self.features, generator=generator, **kind)
        uniform = (2 * torch.rand(count, self.features, generator=generator, **kind) - 1) * math.pi
        return torch.where(self.angle.bool(), uniform.to(self.angle.device), normal.to(self.angle.device))

    def extra_repr(self) -> str:
        return f"features={self.features}, circular={self.angle.nonzero().flatten().tolist()}"


class Flow(Structured):
    """log p(x) = log p_Z(f(x)) + log|det ∂f/∂x|, samples x = f⁻¹(z) with z ~ p_Z.

    Densities have the dtype of the parameters, float32 say, under autocast, too.

    The latent distribution is a `StandardNormal`, another module with `log_prob(z)` and `sample(count, generator)`,
    or a `torch.distributions` one over vectors: event shape (n,), batch shape ().

    `sample` returns numbers without a graph. For training on samples (KL(q‖p) of energies, say), `rsample` and
    `sample_with_log_prob` are differentiable with respect to the parameters, of a torch distribution's own, too, where
    it has `rsample`; under `torch.no_grad` they have no graph either.

    Raises:
        ArgumentError: a latent distribution of another size than the bijection's, or of no vectors.

    Example:
        >>> import torch
        >>> from p4torch.flows import Flow, InvertibleMLP, StandardNormal
        >>> flow = Flow(InvertibleMLP(2, depth=4), StandardNormal(2))
        >>> flow.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, bijection: Bijection, base: Distribution | torch.distributions.Distribution) -> None:
        super().__init__()
        self.bijection = bijection
        if not isinstance(bijection, Bijection):
            raise ArgumentError.of("bijection", "a Bijection", type(bijection).__name__)
        check_base(base, latent_features(bijection))
        self.base = base

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, `(..., n)` -> `(...)`."""
        check_tensor("x", x)
        z, logabsdet = self.bijection(x)
        return base_log_prob(self.base, z) + logabsdet

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`(count, n)`, without a graph."""
        return self.rsample(count, generator)

    def rsample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`(count, n)`, differentiable with respect to the parameters."""
        return self.bijection.inverse(base_sample(self.base, count, generator))[0]

    def sample_with_log_prob(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Samples `(count, n)` and their log p `(count,)`, in one pass, both differentiable as `rsample` is."""
        z = base_sample(self.base, count, generator)
        x, logabsdet = self.bijection.inverse(z)
        return x, base_log_prob(self.base, z) - logabsdet

    def forward(self, x: Tensor) -> Tensor:
        """The same as `log_prob`, so that wrappers which call modules (compile, distributed) work."""
        return self.log_prob(x)
